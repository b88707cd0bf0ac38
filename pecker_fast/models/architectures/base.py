"""What has to be said of a network, or of a family of pipelines, so that all else works with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.models.schemas import ScheduleConfig, read_config
from pecker_fast.models.texts import Texts, load_encoder, load_tokenizer
from pecker_fast.models.weights import load_network
from pecker_fast.runs.reading import Schema

__all__ = ["Architecture", "Denoiser", "check_widths", "load_denoiser"]


class Denoiser(ABC):
    """What has to be said of a network that denoises; without state, it is its functions."""

    name: ClassVar[str]  # for people
    denoiser: ClassVar[str] = "unet"  # the part of a folder that it is
    # The parts of a pipeline with their classes, the network's at least.
    parts: ClassVar[Mapping[str, str]]
    schema: ClassVar[type[Schema]]  # of its config.json

    def load_network(self, folder: Path) -> nn.Module:
        """The network, from its own folder.

        Raises:
            PeckerError: it is missing, damaged or of another kind.
        """
        return load_denoiser(folder, self.parts[self.denoiser], self.schema)

    def is_network(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json that was not checked yet is that of this family's network."""
        return bool(config.get("_class_name") == self.parts[self.denoiser])

    def sample_shape(self, config: Any) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network of this configuration denoises."""
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    def tokens(self, shape: tuple[int, int, int], config: Any) -> int:
        """Tokens that the network makes of an image (C, H, W); a flow's steps may depend on it."""
        patch = getattr(config, "patch_size", 1)
        return (shape[1] // patch) * (shape[2] // patch)

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
        schedule: of scheduler_config.json.
    """

    pipeline: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    longest: ClassVar[Mapping[str, int]] = {}
    optional: ClassVar[frozenset[str]] = frozenset()
    schedule: ClassVar[type[Schema]] = ScheduleConfig

    def has_guidance(self, config: Any) -> bool:
        """Whether guidance is built into the network of this configuration."""
        return False

    def read_schedule(self, file: Path) -> dict[str, Any]:
        """The noise schedule that a scheduler_config.json describes, as `schedule` has it.

        Raises:
            PeckerError: it cannot be read, or is of another process.
        """
        return read_config(file, self.schedule)

    def instruction(self) -> str:
        """What the encoder is told before each prompt."""
        return ""

    def sizes(self, root: Path, config: Any) -> Tensor:
        """(S,) what the network is told after every prompt.

        Raises:
            PeckerError: a file that says so is missing or damaged.
        """
        return torch.empty(0)

    @abstractmethod
    def widths(self, config: Any, encoders: Mapping[str, Any]) -> dict[str, int]:
        """What the network's configuration must say of the configurations of text encoders."""

    @abstractmethod
    def encode(self, pipeline: Any, prompts: list[str], device: torch.device) -> tuple[Tensor, ...]:
        """(P, ...) what the network is told of prompts, by `pipeline.encode_prompt`."""

    def load_texts(self, root: Path, config: Any) -> Texts:
        """What encodes prompts, from the pipeline's folder.

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
        check_widths(root / self.denoiser, dict(config), widths)
        tokenizers = {
            (part := name.replace("text_encoder", "tokenizer")): load_tokenizer(
                root / part, self.parts[part], encoder.config, self.longest.get(part)
            )
            for name, encoder in encoders.items()
        }
        parts = {**dict.fromkeys([*self.parts, "scheduler"]), **self.options}
        pipeline = getattr(diffusers, self.pipeline)(**{**parts, **encoders, **tokenizers})
        sizes = self.sizes(root, config)
        return Texts(self, pipeline, [*tokenizers.values()], [*encoders.values()], sizes)


def check_widths(folder: Path, takes: Mapping[str, Any], given: Mapping[str, int]) -> None:
    """Refuse a network in `folder` that takes texts of other widths than the encoders give.

    Raises:
        PeckerError: one of its entries is not the width that is given, nor a list of that alone.
    """
    for entry, width in given.items():
        found = takes[entry] if isinstance(takes[entry], list) else [takes[entry]]
        if any(each != width for each in found):
            raise PeckerError(
                f"{folder}: {entry} is {takes[entry]}, the text encoders give {width}; take both "
                "from one pipeline"
            )


def load_denoiser(folder: Path, name: str, schema: type[Schema], kind: Any = None) -> nn.Module:
    """A network of diffusers, or of another `kind` where that is given.

    Raises:
        PeckerError: it is missing or damaged.
    """
    import diffusers

    config = read_config(folder / "config.json", schema)
    said = config.get("_class_name", name)
    if said != name:
        raise PeckerError(f"{folder}: is a {said}; expected {name}: take both from one pipeline")
    kind = kind or getattr(diffusers, name)
    make = partial(kind.from_config, config)
    # Without the package accelerate diffusers would say at length that it does just this.
    network: nn.Module = load_network(
        kind, folder, "diffusion_pytorch_model.safetensors", make, low_cpu_mem_usage=False
    )
    return network
