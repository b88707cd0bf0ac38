"""What has to be said of a network, or of a family of pipelines, so that all else works with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.models.texts import Texts, load_encoder, load_tokenizer
from pecker_fast.models.weights import load_network

__all__ = ["LENGTH", "Architecture", "Denoiser", "unmasked"]

LENGTH = 4  # tokens of the text that a network is first called with


class Denoiser(ABC):
    """What has to be said of a network that denoises; without state, it is its functions."""

    name: ClassVar[str]  # for people
    denoiser: ClassVar[str] = "unet"  # the part of a folder that it is
    # The parts of a pipeline with their classes, the network's at least.
    parts: ClassVar[Mapping[str, str]]

    @property
    def kind(self) -> Any:
        """The network's class."""
        import diffusers

        return getattr(diffusers, self.parts[self.denoiser])

    def load_network(self, folder: Path) -> nn.Module:
        """Load the network from its own folder.

        Raises:
            PeckerError: it is missing, damaged or of another kind.
        """
        network: nn.Module = load_network(self.kind, folder, self.call_once)
        return network

    def call_once(self, network: Any) -> None:
        """Call a network as it will be called, for an image of zeros.

        Raises:
            ValueError: it predicts something else than an image.
        """
        x_t = torch.zeros(1, *self.sample_shape(network.config))
        found = self.call(network, x_t, torch.zeros(1), self.no_condition(network.config))
        if found.shape != x_t.shape:
            raise ValueError(
                f"it takes images {(*x_t.shape[1:],)} and predicts {(*found.shape[1:],)}; expected "
                "the same: networks that fill in images or predict a variance are not supported"
            )

    def is_network(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json that was not checked yet is that of this family's network."""
        return bool(config.get("_class_name") == self.parts[self.denoiser])

    def has_guidance(self, config: Any) -> bool:
        """Whether guidance is built into the network of this configuration."""
        return False

    def sample_shape(self, config: Any) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network of this configuration denoises."""
        size = config.sample_size
        if size is None:
            raise PeckerError(
                "'sample_size' is not given; write the height and width that the network was "
                "trained with, such as 32"
            )
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    def tokens(self, shape: tuple[int, int, int], config: Any) -> int:
        """Tokens that the network makes of an image (C, H, W); a flow's steps may depend on it."""
        patch = getattr(config, "patch_size", 1)
        return (shape[1] // patch) * (shape[2] // patch)

    @abstractmethod
    def no_condition(self, config: Any) -> Tensor:
        """(1, ...) zeros of what the network is told; of a text of `LENGTH` tokens."""

    @abstractmethod
    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """What the network predicts, in its own dtype.

        Args:
            network: of this family.
            x_t: (N, C, H, W) noisy images, in the network's dtype.
            time: (N,) how noisy they are, as the family's schedule counts it.
            condition: (N, ...) of `load_texts`, in the network's dtype, or (N,) int64 labels.

        Returns:
            (N, C, H, W) noise or velocity, as the scheduler says.
        """


class Architecture(Denoiser):
    """One family of text-to-image pipelines.

    Attributes:
        parts: those that model_index.json must name. A pipeline may have others, which are copied
            along.
        optional: those of them that may be null.
        pipeline: the class of diffusers that encodes prompts for it.
        options: for its constructor, beside the parts.
        longest: tokens of a text, by tokenizer, where the encoder has no limit of its own.
        flow: its noise schedule is a rectified flow's.
    """

    pipeline: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    longest: ClassVar[Mapping[str, int]] = {}
    optional: ClassVar[frozenset[str]] = frozenset()
    flow: ClassVar[bool] = False

    def instruction(self) -> str:
        """What the encoder is told before each prompt."""
        return ""

    @abstractmethod
    def widths(self, config: Any, encoders: Mapping[str, Any]) -> dict[str, int]:
        """What the network's configuration must say of the configurations of text encoders."""

    def prepare(self, pipeline: Any, root: Path, config: Any) -> None:
        """Tell a pipeline what encoding depends on besides its tokenizers and text encoders.

        Raises:
            PeckerError: a file that says so is missing or damaged.
        """

    @abstractmethod
    def encode(self, pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Tensor, ...]:
        """(P, ...) what the network is told of prompts, by `pipeline.encode_prompt`."""

    def load_texts(self, root: Path, config: Any) -> Texts:
        """Load what encodes prompts, from the folder of a pipeline with a network of `config`.

        Raises:
            PeckerError: a part is missing or damaged, or is another network's.
        """
        import diffusers

        encoders = {
            part: load_encoder(root / part, kind)
            for part, kind in self.parts.items()
            if part.startswith("text_encoder") and (root / part).is_dir()
        }
        widths = self.widths(config, {part: each.config for part, each in encoders.items()})
        for entry, width in widths.items():
            if config[entry] != width:
                raise PeckerError(
                    f"{root / self.denoiser}: {entry} is {config[entry]}, the text encoders give "
                    f"{width}; take both from one pipeline"
                )
        tokenizers = {
            (part := name.replace("text_encoder", "tokenizer")): load_tokenizer(
                root / part, self.parts[part], encoder.config, self.longest.get(part)
            )
            for name, encoder in encoders.items()
        }
        parts = {**dict.fromkeys([*self.parts, "scheduler"]), **self.options}
        pipeline = getattr(diffusers, self.pipeline)(**{**parts, **encoders, **tokenizers})
        self.prepare(pipeline, root, config)
        return Texts(self, pipeline, [*tokenizers.values()], [*encoders.values()])


def unmasked(condition: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cut rows (N, L * (D + 1)) into texts (N, L, D) of that width and their mask (N, L)."""
    length = condition.shape[1] // (width + 1)
    texts = condition[:, :-length].reshape(len(condition), length, width)
    return texts, condition[:, -length:]
