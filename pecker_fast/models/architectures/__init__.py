"""The networks and the families of pipelines that are known, one file each."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.models.architectures.base import Architecture
from pecker_fast.models.architectures.class_networks import ClassNetwork, DDPMNetwork, UNetNetwork
from pecker_fast.models.architectures.dit import DiT
from pecker_fast.models.architectures.flux import Flux
from pecker_fast.models.architectures.pixart import PixArt
from pecker_fast.models.architectures.sana import Sana
from pecker_fast.models.architectures.stable_diffusion import StableDiffusion
from pecker_fast.models.architectures.stable_diffusion_3 import StableDiffusion3
from pecker_fast.models.architectures.stable_diffusion_xl import StableDiffusionXL

__all__ = [
    "ARCHITECTURES",
    "CLASS_NETWORKS",
    "Architecture",
    "ClassNetwork",
    "StableDiffusion",
    "StableDiffusionXL",
    "architecture_of",
    "class_network",
]

ARCHITECTURES: tuple[Architecture, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    StableDiffusion3(),
    Flux(),
    PixArt(),
    Sana(),
)

CLASS_NETWORKS: tuple[ClassNetwork, ...] = (UNetNetwork(), DDPMNetwork(), DiT())


def class_network(network: nn.Module) -> ClassNetwork:
    """What is known of a network that is told a class; one of another kind is as `UNet2DModel`."""
    return next((k for k in CLASS_NETWORKS if isinstance(network, k.kind)), CLASS_NETWORKS[0])


def architecture_of(name: str, parts: Mapping[str, str | None], root: Path) -> Architecture:
    """The family whose parts these are.

    Raises:
        PeckerError: no family has such parts; the nearest one says which is wrong.
    """

    def wrong(family: Architecture) -> list[str]:
        return [
            part
            for part, kind in family.parts.items()
            if str(parts.get(part)).removesuffix("Fast") != kind
            and not (part in family.optional and parts.get(part) is None)
        ]

    # Further encoders make it another family, safety checkers and the like do not.
    known = {part for family in ARCHITECTURES for part in family.parts}
    has = {part for part in known if parts.get(part) is not None}
    for family in ARCHITECTURES:
        if not wrong(family) and has <= family.parts.keys():
            return family
    nearest = min(ARCHITECTURES, key=lambda family: len(has ^ family.parts.keys()))
    part = (wrong(nearest) or sorted(has - nearest.parts.keys()))[0]
    raise PeckerError(
        f"pipeline folder {root}: {name} has {part} {parts.get(part)}; expected "
        f"{nearest.parts.get(part, 'none')}, as {nearest.name} has; known are "
        f"{', '.join(family.name for family in ARCHITECTURES)}"
    )
