"""What has to be said of a network, or of a family of pipelines, so that all else works with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

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
        schedule: of scheduler_config.json.
    """

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

    def encoder(self, root: Path, part: str) -> Any:
        """The text encoder that is this part of a pipeline's folder.

        Raises:
            PeckerError: it is missing or damaged.
        """
        return load_encoder(root / part, self.parts[part])

    def tokenizer(self, root: Path, part: str, encoder: Any, longest: int | None = None) -> Any:
        """The tokenizer of an encoder, likewise; see `load_tokenizer`."""
        return load_tokenizer(root / part, self.parts[part], encoder.config, longest)

    @abstractmethod
    def load_texts(self, root: Path, config: Any) -> Texts:
        """What encodes prompts, from the pipeline's folder.

        Raises:
            PeckerError: a part is missing or damaged, or is another network's.
        """


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
