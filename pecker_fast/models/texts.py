"""Prompts as a pipeline's own `encode_prompt` tells them to its network, a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json, read_text, shown
from pecker_fast.models.weights import first_line, load_network, quiet_libraries

if TYPE_CHECKING:
    from pecker_fast.models.architectures.base import Architecture

__all__ = ["Texts", "load_encoder", "load_tokenizer"]

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
        with quiet_libraries():  # of a long prompt `cut` says the end
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
        return torch.cat([part.to(parts[0].dtype).flatten(1) for part in parts], 1)

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


def load_encoder(folder: Path, name: str) -> Any:
    """Load a text encoder of transformers, of the class of that name, frozen, in eval mode.

    Raises:
        PeckerError: it is missing or damaged.
    """
    import transformers

    def encode(encoder: Any) -> None:
        encoder(torch.zeros(1, 4, dtype=torch.int64))

    encoder = load_network(getattr(transformers, name), folder, encode)
    return encoder.eval().requires_grad_(False)


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

    words = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in words):
        raise PeckerError(f"{folder}: the tokenizer has none of {', '.join(words)}; copy it again")
    for file in folder.glob("*.json"):
        if not isinstance(content := read_json(file), dict):
            raise PeckerError(f"{file}: expected an object, got {shown(content)}")
    merges = folder / "merges.txt"
    # transformers takes an empty one for a tokenizer that knows no words.
    if merges.exists() and not read_text(merges).startswith("#version"):
        raise PeckerError(f"{merges}: expected '#version' and two tokens on each further line")
    try:
        kind = getattr(transformers, name)
        tokenizer: Any = kind.from_pretrained(str(folder), local_files_only=True)
        size, limit = len(tokenizer), int(tokenizer.model_max_length)
        tokenizer("a", padding="max_length", max_length=min(limit, 8), truncation=True)
    except Exception as error:  # transformers raises many kinds for damaged files
        raise PeckerError(
            f"{folder}: the tokenizer cannot be read ({first_line(error)})"
        ) from error
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
