"""Prompts as a network is told them: tokenizers and text encoders of a pipeline's folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json, read_text, shown
from pecker_fast.models.schemas import Config, Count, Layers, Share, Small, read_config
from pecker_fast.models.weights import load_network

__all__ = [
    "ClipTexts",
    "Texts",
    "load_clip",
    "load_clip_tokenizer",
    "load_gemma",
    "load_gemma_tokenizer",
    "load_t5",
    "load_t5_tokenizer",
    "masked",
    "padded",
    "unmasked",
]

_CHUNK = 64  # prompts at a time


class _ClipConfig(Config):
    """config.json of transformers' `CLIPTextModel`."""

    vocab_size: Count = 49408
    hidden_size: Count = 512
    intermediate_size: Count = 2048
    num_hidden_layers: Layers = 12
    num_attention_heads: Count = 8
    max_position_embeddings: Count = 77
    layer_norm_eps: Small = 1e-5
    projection_dim: Count = 512
    attention_dropout: Share = 0.0
    eos_token_id: Annotated[int, Field(ge=0, le=1 << 20)] = 49407


class _T5Config(Config):
    """config.json of transformers' `T5EncoderModel`."""

    vocab_size: Count = 32128
    d_model: Count = 512
    d_kv: Count = 64
    d_ff: Count = 2048
    num_layers: Layers = 6
    num_heads: Count = 8
    relative_attention_num_buckets: Count = 32
    relative_attention_max_distance: Count = 128
    dropout_rate: Share = 0.1
    layer_norm_epsilon: Small = 1e-6


class _GemmaConfig(Config):
    """config.json of transformers' `Gemma2Model`."""

    vocab_size: Count = 256000
    hidden_size: Count = 2304
    intermediate_size: Count = 9216
    num_hidden_layers: Layers = 26
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    head_dim: Count = 256
    max_position_embeddings: Count = 8192
    rms_norm_eps: Small = 1e-6
    query_pre_attn_scalar: Count = 256
    sliding_window: Count = 4096
    attention_dropout: Share = 0.0


class Texts(ABC):
    """What turns prompts into conditions: one tensor a prompt, whatever the network takes.

    Where a network takes more than one tensor, they lie in one row behind one another, and the
    architecture cuts it up again.

    Attributes:
        tokenizers: one for each encoder.
        encoders: frozen, in eval mode.
    """

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[nn.Module]) -> None:
        """Keep both, frozen."""
        self.tokenizers = tuple(tokenizers)
        self.encoders = tuple(encoder.eval().requires_grad_(False) for encoder in encoders)

    @abstractmethod
    def _embed(self, prompts: list[str], place: torch.device) -> Tensor:
        """(P, ...) the conditions of a few prompts, with the encoders on `place`."""

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], device: torch.device | None = None) -> Tensor:
        """The conditions of prompts, as the pipeline of diffusers makes them.

        Args:
            prompts: P texts; those longer than the tokenizer's limit are cut.
            device: where to compute. None = where the text encoder is.

        Returns:
            (P, ...) on the CPU.

        Raises:
            PeckerError: a prompt that is no text in Unicode, as bytes on a command line may be.
        """
        for prompt in prompts:
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise PeckerError(f"prompt {shown(prompt)}: is no UTF-8; type it again")
        home = next(self.encoders[0].parameters()).device
        place = home if device is None else device
        for encoder in self.encoders:
            encoder.to(place)
        found = [
            self._embed(list(prompts[first : first + _CHUNK]), place).cpu()
            for first in range(0, len(prompts), _CHUNK)
        ]
        for encoder in self.encoders:  # they are not needed again
            encoder.to(home)
        return torch.cat(found)

    def tokens(self, prompts: Sequence[str]) -> list[Any]:
        """The numbers of the tokens of prompts, from each tokenizer: what a run depends on."""
        return [
            tokenizer(
                list(prompts), max_length=tokenizer.model_max_length, truncation=True
            ).input_ids
            for tokenizer in self.tokenizers
        ]

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """The prompts that no text encoder reads to the end, and the end that none reads."""
        longest = max(self.tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
        limit = longest.model_max_length - longest.num_special_tokens_to_add()
        longer = {}
        for prompt in prompts:
            # Not verbose: transformers would say of every one what is said here with its end.
            tokens = longest(prompt, add_special_tokens=False, verbose=False).input_ids
            if len(tokens) > limit:
                longer[prompt] = longest.decode(tokens[limit:]).strip()
        return longer


class ClipTexts(Texts):
    """One CLIP text encoder, whose last hidden states are the condition: (P, L, D)."""

    def _embed(self, prompts: list[str], place: torch.device) -> Tensor:
        (encoder,) = self.encoders
        embeddings: Tensor = encoder(padded(self.tokenizers[0], prompts, place))[0]
        return embeddings


def padded(tokenizer: Any, prompts: list[str], place: torch.device) -> Tensor:
    """(P, L) the numbers of the tokens, cut and padded to the tokenizer's length L."""
    tokens: Tensor = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens.to(place)


def masked(texts: Tensor, mask: Tensor) -> Tensor:
    """(P, L * (D + 1)): hidden states (P, L, D), then which tokens are no padding, (P, L)."""
    return torch.cat([texts.flatten(1), mask.to(texts)], 1)


def unmasked(condition: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Both parts of `masked`, whose hidden states have that width."""
    length = condition.shape[1] // (width + 1)
    texts = condition[:, :-length].reshape(len(condition), length, width)
    return texts, condition[:, -length:]


def load_clip(folder: Path, *, projected: bool = False) -> Any:
    """A `CLIPTextModel`, or a `CLIPTextModelWithProjection`.

    Raises:
        PeckerError: it is missing or damaged.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = read_config(folder / "config.json", _ClipConfig)
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return load_network(kind, folder, "model.safetensors", lambda: kind(CLIPTextConfig(**config)))


def load_clip_tokenizer(folder: Path, encoder: Any) -> Any:
    """The tokenizer of a CLIP text encoder, which makes no text longer than that takes.

    Raises:
        PeckerError: it cannot be read, or is another encoder's.
    """
    from transformers import CLIPTokenizer

    _check_files(folder, "tokenizer.json", "vocab.json")
    merges = folder / "merges.txt"
    lines = read_text(merges).split("\n") if merges.exists() else ["#version"]
    if lines == [""] or not all(len(s.split(" ")) == 2 for s in lines if s[:1] not in "#"):
        raise PeckerError(f"{merges}: expected two tokens on each line; copy the tokenizer again")
    return _tokenizer(CLIPTokenizer, folder, encoder, encoder.max_position_embeddings)


def load_t5(folder: Path) -> Any:
    """A `T5EncoderModel`, from its folder.

    Raises:
        PeckerError: it is missing or damaged.
    """
    from transformers import T5Config, T5EncoderModel

    config = read_config(folder / "config.json", _T5Config)
    return load_network(
        T5EncoderModel, folder, "model.safetensors", lambda: T5EncoderModel(T5Config(**config))
    )


def load_gemma(folder: Path) -> Any:
    """A `Gemma2Model`, from its folder.

    Raises:
        PeckerError: it is missing or damaged.
    """
    from transformers import Gemma2Config, Gemma2Model

    config = read_config(folder / "config.json", _GemmaConfig)
    return load_network(
        Gemma2Model, folder, "model.safetensors", lambda: Gemma2Model(Gemma2Config(**config))
    )


def load_t5_tokenizer(folder: Path, encoder: Any, longest: int) -> Any:
    """The tokenizer of a T5 encoder, which takes any number of tokens: cut and padded to `longest`.

    Raises:
        PeckerError: it cannot be read, or is another encoder's.
    """
    from transformers import T5Tokenizer

    _check_files(folder, "tokenizer.json", "spiece.model")
    return _tokenizer(T5Tokenizer, folder, encoder, longest)


def load_gemma_tokenizer(folder: Path, encoder: Any, longest: int) -> Any:
    """The tokenizer of a Gemma 2, as `load_t5_tokenizer`; texts are padded behind their end."""
    from transformers import GemmaTokenizer

    _check_files(folder, "tokenizer.json", "tokenizer.model")
    tokenizer = _tokenizer(GemmaTokenizer, folder, encoder, longest)
    tokenizer.padding_side = "right"
    return tokenizer


def _check_files(folder: Path, *either: str) -> None:
    """Refuse JSON files that hold no objects, and a folder with none of these files."""
    if not any((folder / name).is_file() for name in either):
        raise PeckerError(
            f"{folder}: the tokenizer has neither {' nor '.join(either)}; copy it again"
        )
    for file in sorted(folder.glob("*.json")):
        if not isinstance(content := read_json(file), dict):
            raise PeckerError(f"{file}: expected an object, got {shown(content)}")


def _tokenizer(kind: Any, folder: Path, encoder: Any, limit: int) -> Any:
    """A tokenizer of transformers that makes texts of at most `limit` tokens."""
    try:
        tokenizer: Any = kind.from_pretrained(str(folder), local_files_only=True)
        size, longest = len(tokenizer), int(tokenizer.model_max_length)
    except Exception as error:  # transformers raises many kinds for damaged files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PeckerError(f"{folder}: the tokenizer cannot be read ({reason})") from error
    said = tokenizer.model_max_length
    if size > encoder.vocab_size or longest < 1 or longest != said or tokenizer.pad_token is None:
        raise PeckerError(
            f"{folder}: the tokenizer has {size} tokens, texts of up to {shown(said)} and the "
            f"padding {tokenizer.pad_token!r}; expected some padding and at most the "
            f"{encoder.vocab_size} tokens of the text encoder: take both from one pipeline"
        )
    # A tokenizer that does not say how long its texts may be gives 10^30.
    tokenizer.model_max_length = min(longest, limit)
    return tokenizer
