"""Networks that are told a class: how they are called, and which labels they take."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.models.architectures.base import Denoiser, load_denoiser
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.schemas import ClassUNetConfig, DDPMUNetConfig

__all__ = ["ClassNetwork", "DDPMNetwork", "UNetNetwork"]


class ClassNetwork(Denoiser):
    """A network that is told the label of a class, and takes images of one size.

    Attributes:
        kind: its class.
        own_null: it says itself which label means no class; else its folder does.
    """

    kind: ClassVar[type[nn.Module]]
    own_null: ClassVar[bool] = True

    def load_network(self, folder: Path) -> nn.Module:
        """The network in float32, from its own folder.

        Raises:
            PeckerError: it is missing, damaged or of another kind.
        """
        name = self.parts[self.denoiser]
        network = load_denoiser(folder, name, self.schema, self.kind)
        return nn.Module.float(network)  # diffusers' own warns

    @abstractmethod
    def labels(self, network: Any) -> tuple[int, int | None]:
        """How many labels it takes, and which of them means no class, where it says so itself.

        Raises:
            PeckerError: none.
        """

    def settle(self, network: nn.Module) -> None:
        """Make train mode draw no random labels."""

    def call(self, network: nn.Module, x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """As `UNet2DModel`; networks of one's own may return the tensor itself."""
        output = network(x_t, time, condition)
        predicted: Tensor = output if isinstance(output, Tensor) else output.sample
        return predicted


class UNetNetwork(ClassNetwork):
    """diffusers' `UNet2DModel`."""

    name: ClassVar = "UNet2DModel"
    parts: ClassVar = {"unet": "UNet2DModel"}
    schema: ClassVar = ClassUNetConfig
    kind: ClassVar = UNet2DModel
    own_null: ClassVar = False

    def labels(self, network: Any) -> tuple[int, int | None]:
        """The rows of its table."""
        if not isinstance(network.class_embedding, nn.Embedding):
            raise PeckerError(
                "the network has no class embedding (num_class_embeds is "
                f"{network.config.num_class_embeds}); erasing a class needs a class-conditional "
                "model"
            )
        return network.class_embedding.num_embeddings, None


class DDPMNetwork(ClassNetwork):
    """This package's `DDPMUNet`."""

    name: ClassVar = "DDPMUNet"
    parts: ClassVar = {"unet": "DDPMUNet"}
    schema: ClassVar = DDPMUNetConfig
    kind: ClassVar = DDPMUNet

    def labels(self, network: Any) -> tuple[int, int | None]:
        """Its classes, and its null vector where it has one."""
        null = network.null_label
        return network.num_classes + (null is not None), null
