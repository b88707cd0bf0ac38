"""A language model, a tokenizer and texts of a toy language, made here; nothing is downloaded."""

import copy

import torch

WORDS = "a the cat dog bird sees hears likes red blue small old and".split()


def tiny_llama(tied=False):
    """One layer, 16 wide; always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=4 + len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=tied,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", padding_side="left",
    )  # fmt: skip


def sentences(count):
    """Of six words each; the same at every call."""
    generator = torch.Generator().manual_seed(6)
    found = torch.randint(len(WORDS), (count, 3), generator=generator).tolist()
    return [f"the {WORDS[a]} sees {WORDS[b]} and {WORDS[c]}" for a, b, c in found]


def examples(texts, tokens=None):
    """Token numbers of each, as transformers' Trainer takes them."""
    tokens = tokens or tokenizer()
    numbers = [tokens(text)["input_ids"] for text in texts]
    return [{"input_ids": one, "attention_mask": [1] * len(one), "labels": one} for one in numbers]


def batches(texts, tokens=None, size=4):
    """A loader of batches, in order."""
    tensors = [
        {key: torch.tensor(value) for key, value in one.items()} for one in examples(texts, tokens)
    ]
    return torch.utils.data.DataLoader(tensors, batch_size=size)


def loss_of(model):
    """The mean loss on some sentences."""
    (batch,) = batches(sentences(16), size=16)
    with torch.no_grad():
        return float(copy.deepcopy(model).eval()(**batch).loss)
