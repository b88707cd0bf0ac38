"""Networks that are told a class: how they are called, and which labels they take."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.models.architectures.base import Denoiser
from pecker_fast.models.ddpm import DDPMUNet

__all__ = ["ClassNetwork", "DDPMNetwork", "UNetNetwork"]


class ClassNetwork(Denoiser):
    """A network that is told the label of a class, and takes images of one size.

    Attributes:
        own_null: it says itself which label means no class; else its folder does.
    """

    own_null: ClassVar[bool] = True

    def load_network(self, folder: Path) -> nn.Module:
        """Load the network in float32, from its own folder.

        Raises:
            PeckerError: it is missing, damaged or of another kind.
        """
        return nn.Module.float(super().load_network(folder))  # diffusers' own warns

    @abstractmethod
    def labels(self, network: Any) -> tuple[int, int | None]:
        """How many labels it takes, and which of them means no class, where it says so itself.

        Raises:
            PeckerError: none.
        """

    def call_once(self, network: Any) -> None:
        """As any; a network without classes says so.

        Raises:
            ValueError: it predicts something else than an image.
            PeckerError: none.
        """
        self.labels(network)
        super().call_once(network)

    def settle(self, network: nn.Module) -> None:
        """Make train mode draw no random labels."""

    def no_condition(self, config: Any) -> Tensor:
        """The first class."""
        return torch.zeros(1, dtype=torch.int64)

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `UNet2DModel`; networks of one's own may return the tensor itself."""
        output = network(x_t, time, condition)
        predicted: Tensor = output if isinstance(output, Tensor) else output.sample
        return predicted


class UNetNetwork(ClassNetwork):
    """diffusers' `UNet2DModel`."""

    name: ClassVar = "UNet2DModel"
    parts: ClassVar = {"unet": "UNet2DModel"}
    kind: ClassVar = UNet2DModel
    own_null: ClassVar = False

    def labels(self, network: Any) -> tuple[int, int | None]:
        """The rows of its table."""
        table = network.class_embedding
        if not isinstance(table, nn.Embedding):
            raise PeckerError(
                "the network has no class embedding (num_class_embeds is "
                f"{network.config.num_class_embeds}); erasing a class needs a class-conditional "
                "model"
            )
        return table.num_embeddings, None


class DDPMNetwork(ClassNetwork):
    """This package's `DDPMUNet`."""

    name: ClassVar = "DDPMUNet"
    parts: ClassVar = {"unet": "DDPMUNet"}
    kind: ClassVar = DDPMUNet

    def labels(self, network: Any) -> tuple[int, int | None]:
        """Its classes, and its null vector where it has one."""
        null = network.null_label
        return network.num_classes + (null is not None), null
