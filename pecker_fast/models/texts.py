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

__all__ = ["ClipTexts", "Texts", "load_encoder", "load_tokenizer", "masked", "padded", "unmasked"]

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


_ENCODERS: dict[str, tuple[str, type[Config]]] = {
    "CLIPTextModel": ("CLIPTextConfig", _ClipConfig),
    "CLIPTextModelWithProjection": ("CLIPTextConfig", _ClipConfig),
    "T5EncoderModel": ("T5Config", _T5Config),
    "Gemma2Model": ("Gemma2Config", _GemmaConfig),
}
"""Of transformers, by name: what describes them."""

_TOKENIZERS = {
    "CLIPTokenizer": "vocab.json",
    "T5Tokenizer": "spiece.model",
    "GemmaTokenizer": "tokenizer.model",
}
"""Of transformers, by name: a file that they have where they have no tokenizer.json."""


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
        embeddings: Tensor = encoder(padded(self.tokenizers[0], prompts, place).input_ids)[0]
        return embeddings


def padded(
    tokenizer: Any, prompts: list[str], place: torch.device, length: int | None = None
) -> Any:
    """The tokens, `.input_ids` (P, L), and which are no padding, `.attention_mask`, likewise.

    They are cut and padded to L, the tokenizer's own length unless another is given.
    """
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=length or tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).to(place)


def masked(texts: Tensor, mask: Tensor) -> Tensor:
    """(P, L * (D + 1)): hidden states (P, L, D), then which tokens are no padding, (P, L)."""
    return torch.cat([texts.flatten(1), mask.to(texts)], 1)


def unmasked(condition: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Both parts of `masked`, whose hidden states have that width."""
    length = condition.shape[1] // (width + 1)
    texts = condition[:, :-length].reshape(len(condition), length, width)
    return texts, condition[:, -length:]


def load_encoder(folder: Path, name: str) -> Any:
    """A text encoder, one of those of transformers that are known here.

    Raises:
        PeckerError: it is missing or damaged.
    """
    import transformers

    describes, schema = _ENCODERS[name]
    config = read_config(folder / "config.json", schema)
    kind, configured = getattr(transformers, name), getattr(transformers, describes)
    return load_network(kind, folder, "model.safetensors", lambda: kind(configured(**config)))


def load_tokenizer(folder: Path, name: str, encoder: Any, longest: int | None = None) -> Any:
    """The tokenizer of a text encoder, which makes no text longer than `longest`.

    Args:
        folder: its own.
        name: one of those of transformers that are known here.
        encoder: configuration of the text encoder.
        longest: tokens of a text. None: as many as the encoder, of CLIP, takes.

    Raises:
        PeckerError: it cannot be read, or is another encoder's.
    """
    import transformers

    _check_files(folder, "tokenizer.json", _TOKENIZERS[name])
    if name == "CLIPTokenizer":
        _check_merges(folder / "merges.txt")
        longest = longest or encoder.max_position_embeddings
    tokenizer = _tokenizer(getattr(transformers, name), folder, encoder, longest)
    if name == "GemmaTokenizer":
        tokenizer.padding_side = "right"
    return tokenizer


def _check_merges(merges: Path) -> None:
    lines = read_text(merges).split("\n") if merges.exists() else ["#version"]
    if lines == [""] or not all(len(s.split(" ")) == 2 for s in lines if s[:1] not in "#"):
        raise PeckerError(f"{merges}: expected two tokens on each line; copy the tokenizer again")


def _check_files(folder: Path, *either: str) -> None:
    """Refuse JSON files that hold no objects, and a folder with none of these files."""
    if not any((folder / name).is_file() for name in either):
        raise PeckerError(
            f"{folder}: the tokenizer has neither {' nor '.join(either)}; copy it again"
        )
    for file in sorted(folder.glob("*.json")):
        if not isinstance(content := read_json(file), dict):
            raise PeckerError(f"{file}: expected an object, got {shown(content)}")


def _tokenizer(kind: Any, folder: Path, encoder: Any, limit: Any) -> Any:
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
