"""Prompts as a pipeline's own `encode_prompt` tells them to its network, a row for each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json, read_text, shown
from pecker_fast.models.schemas import Config, Count, Layers, Share, Small, read_config
from pecker_fast.models.weights import load_network

if TYPE_CHECKING:
    from pecker_fast.models.architectures.base import Architecture

__all__ = ["Texts", "load_encoder", "load_tokenizer", "unmasked"]

_CHUNK = 64  # prompts at a time


@dataclass
class Texts:
    """Tokenizers and text encoders of a pipeline.

    Where a network takes more than one tensor, they lie in one row behind one another, and the
    architecture cuts it up again.
    """

    architecture: Architecture
    pipeline: Any  # of diffusers, with these parts alone
    tokenizers: Sequence[Any]  # one for each encoder
    encoders: Sequence[nn.Module]  # frozen, in eval mode
    sizes: Tensor  # (S,) what a network is told after every prompt; S is 0 unless it is SDXL's

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], device: torch.device | None = None) -> Tensor:
        """Return the conditions of prompts, as the pipeline of diffusers makes them.

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
        with _quiet():
            found = [
                self._rows(list(prompts[first : first + _CHUNK]), place).cpu()
                for first in range(0, len(prompts), _CHUNK)
            ]
        for encoder in self.encoders:  # they are not needed again
            encoder.to(home)
        return torch.cat(found)

    def _rows(self, prompts: list[str], place: torch.device) -> Tensor:
        parts = self.architecture.encode(self.pipeline, prompts, place)
        if len(parts) == 1:
            return parts[0]
        sizes = self.sizes.to(parts[0]).expand(len(prompts), -1)
        return torch.cat([*(part.to(parts[0].dtype).flatten(1) for part in parts), sizes], 1)

    def tokens(self, prompts: Sequence[str]) -> list[Any]:
        """Return the numbers of the tokens of prompts, from each tokenizer: a run depends on them.

        The last are those of what the architecture says before each prompt, if anything.
        """
        found = [
            tokenizer(
                list(prompts), max_length=tokenizer.model_max_length, truncation=True
            ).input_ids
            for tokenizer in self.tokenizers
        ]
        instruction = self.architecture.instruction()
        return [*found, self.tokenizers[0].encode(instruction)] if instruction else found

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return the prompts that no text encoder reads to the end, and the end that none reads."""
        longest = max(self.tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
        limit = longest.model_max_length - longest.num_special_tokens_to_add()
        longer = {}
        for prompt in prompts:
            # Not verbose: transformers would say of every one what is said here with its end.
            tokens = longest(prompt, add_special_tokens=False, verbose=False).input_ids
            if len(tokens) > limit:
                longer[prompt] = longest.decode(tokens[limit:]).strip()
        return longer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep both libraries from saying of each long prompt what `Texts.cut` says once."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = of_diffusers.get_verbosity(), of_transformers.get_verbosity()
    of_diffusers.set_verbosity_error()
    of_transformers.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        of_diffusers.set_verbosity(before[0])
        of_transformers.set_verbosity(before[1])


def unmasked(condition: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cut rows (N, L * (D + 1)) into texts (N, L, D) of that width and their mask (N, L)."""
    length = condition.shape[1] // (width + 1)
    texts = condition[:, :-length].reshape(len(condition), length, width)
    return texts, condition[:, -length:]


class _EncoderConfig(Config):
    """config.json of a text encoder of transformers: what would take for ever to be found wrong."""

    vocab_size: Count = 1
    num_hidden_layers: Layers = 1
    num_layers: Layers = 1
    attention_dropout: Share = 0.0
    dropout_rate: Share = 0.0
    layer_norm_eps: Small = 1e-5
    layer_norm_epsilon: Small = 1e-6
    rms_norm_eps: Small = 1e-6
    eos_token_id: Annotated[int, Field(ge=0, le=1 << 20)] | None = None


def load_encoder(folder: Path, name: str) -> Any:
    """Load a text encoder of transformers, of the class of that name.

    Raises:
        PeckerError: it is missing or damaged.
    """
    import transformers

    config = read_config(folder / "config.json", _EncoderConfig)
    kind = getattr(transformers, name)

    def make() -> nn.Module:
        encoder: nn.Module = kind(kind.config_class(**config))
        encoder(torch.zeros(1, 4, dtype=torch.int64))
        return encoder

    return load_network(kind, folder, "model.safetensors", make).eval().requires_grad_(False)


def load_tokenizer(folder: Path, name: str, encoder: Any, longest: int | None = None) -> Any:
    """Load the tokenizer of a text encoder, which makes no text longer than `longest`.

    Args:
        folder: its own.
        name: a class of transformers.
        encoder: configuration of the text encoder.
        longest: tokens of a text. None: as many as the encoder, of CLIP, takes.

    Raises:
        PeckerError: it cannot be read, or is another encoder's.
    """
    import transformers

    _check_files(folder)
    try:
        kind = getattr(transformers, name)
        tokenizer: Any = kind.from_pretrained(str(folder), local_files_only=True)
        size, limit = len(tokenizer), int(tokenizer.model_max_length)
    except Exception as error:  # transformers raises many kinds for damaged files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PeckerError(f"{folder}: the tokenizer cannot be read ({reason})") from error
    said = tokenizer.model_max_length
    if size > encoder.vocab_size or limit < 1 or limit != said or tokenizer.pad_token is None:
        raise PeckerError(
            f"{folder}: the tokenizer has {size} tokens, texts of up to {shown(said)} and the "
            f"padding {tokenizer.pad_token!r}; expected some padding and at most the "
            f"{encoder.vocab_size} tokens of the text encoder: take both from one pipeline"
        )
    # A tokenizer that does not say how long its texts may be gives 10^30.
    tokenizer.model_max_length = min(limit, longest or encoder.max_position_embeddings)
    return tokenizer


def _check_files(folder: Path) -> None:
    """Refuse what transformers would take for a tokenizer of no words."""
    words = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in words):
        raise PeckerError(f"{folder}: the tokenizer has none of {', '.join(words)}; copy it again")
    for file in sorted(folder.glob("*.json")):
        if not isinstance(content := read_json(file), dict):
            raise PeckerError(f"{file}: expected an object, got {shown(content)}")
    merges = folder / "merges.txt"
    lines = read_text(merges).split("\n") if merges.exists() else ["#version"]
    if lines == [""] or not all(len(s.split(" ")) == 2 for s in lines if s[:1] not in "#"):
        raise PeckerError(f"{merges}: expected two tokens on each line; copy the tokenizer again")
