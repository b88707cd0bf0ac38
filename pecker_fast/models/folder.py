"""A class-conditional diffusion model as a folder on disk: network, noise schedule, class names.

Layout, diffusers' own plus one file::

    unet/config.json, unet/diffusion_pytorch_model.safetensors     save_pretrained of the network
    scheduler/scheduler_config.json                                DDPMScheduler.save_pretrained
    pecker_fast.json    class names, patch size, label of "no class", figures (optional)

The network is diffusers' `UNet2DModel` or this package's `DDPMUNet`; unet/config.json says which.
A bare network folder (config.json at its top) loads too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DModel

from pecker_fast.errors import PeckerError
from pecker_fast.files import replacing_folder
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.runs.classes import class_index

__all__ = ["ModelFolder"]

DESCRIPTION = "pecker_fast.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = (
    DESCRIPTION,
    "scheduler/scheduler_config.json",
    "unet/config.json",
    f"unet/{WEIGHTS}",
)
"""What `ModelFolder.save` writes; a test holds the two together."""


@dataclass(frozen=True)
class ModelFolder:
    """A teacher or an erased generator with all that is needed to use it.

    Attributes:
        unet: the noise predictor, class-conditional: `network(x, t, labels).sample`.
        scheduler: the noise schedule it was trained with.
        class_names: one name per class, by class index.
        patch_size: the network sees `patch_size**2` neighbouring pixels as channels (1: pixels).
        figures: measured figures that ship with the model, e.g. its accuracy in 50 steps.
        kind: "teacher" (many steps) or "generator" (made for one step).
        null_label: the label that means "no class", which guidance needs; None: the network has
            none. A `DDPMUNet` says itself.
    """

    unet: UNet2DModel | DDPMUNet
    scheduler: DDPMScheduler
    class_names: tuple[str, ...]
    patch_size: int = 1
    figures: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "teacher"
    null_label: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.unet, DDPMUNet):
            object.__setattr__(self, "null_label", self.unet.null_label)

    @property
    def num_classes(self) -> int:
        """Number of classes the network is conditioned on."""
        return len(self.class_names)

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image: the network's shape with the patches laid out."""
        channels, height, width = self.network_shape
        return channels // self.patch_size**2, height * self.patch_size, width * self.patch_size

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Turn network samples (N, *network_shape) into images (N, *image_shape) in [-1, 1]."""
        return F.pixel_shuffle(x, self.patch_size).clamp(-1.0, 1.0)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images (N, *image_shape) in [-1, 1] into what the network sees."""
        return F.pixel_unshuffle(images, self.patch_size)

    def class_index(self, name: str | int) -> int:
        """The index of a class given by its name (case does not matter) or index.

        Raises:
            PeckerError: no such class; the message lists the classes.
        """
        return class_index(name, self.class_names, "the model")

    def with_network(self, unet: UNet2DModel | DDPMUNet, kind: str) -> ModelFolder:
        """The same description around another network; the figures do not carry over."""
        return replace(self, unet=unet, kind=kind, figures={})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelFolder:
        """Read a model folder.

        Raises:
            PeckerError: nothing there, a truncated file, a network without classes, no schedule,
                or a description that does not fit the network.
        """
        root = Path(path)
        unet_folder = root if (root / "config.json").is_file() else root / "unet"
        for needed in (unet_folder / "config.json", unet_folder / WEIGHTS):
            if not needed.is_file():
                raise PeckerError(
                    f"model folder {root}: {needed.relative_to(root)} is missing; expected a "
                    "folder saved by save_pretrained of a network, or one with unet/ and scheduler/"
                )
        unet = _load_unet(unet_folder)
        scheduler = _load_scheduler(root)
        description = _load_description(root)
        null_label = description.get("null_label")
        names = _class_names(root, unet, description.get("class_names"), null_label)
        patch_size = description.get("patch_size", 1)
        channels = unet.config.in_channels
        if not isinstance(patch_size, int) or patch_size < 1 or channels % patch_size**2:
            raise PeckerError(
                f"model folder {root}: patch_size {patch_size!r} in {DESCRIPTION} must be a whole "
                f"number whose square divides the network's {channels} channels"
            )
        return cls(
            unet=unet,
            scheduler=scheduler,
            class_names=names,
            patch_size=patch_size,
            figures=description.get("figures", {}),
            kind=description.get("kind", "teacher"),
            null_label=null_label,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder. `pecker_fast.json` comes last: a folder that has it is complete."""
        root = Path(path)
        self.unet.save_pretrained(root / "unet")
        self.scheduler.save_pretrained(root / "scheduler")
        description = {
            "kind": self.kind,
            "class_names": list(self.class_names),
            "patch_size": self.patch_size,
            "null_label": self.null_label,
            "figures": dict(self.figures),
        }
        temporary = root / (DESCRIPTION + ".tmp")
        temporary.write_text(json.dumps(description, indent=2) + "\n")
        os.replace(temporary, root / DESCRIPTION)

    def save_whole(self, path: Path) -> None:
        """Write the folder whole or not at all, in the place of one that may be there."""
        with replacing_folder(path) as partial:
            self.save(partial)


def _class_names(
    root: Path, unet: UNet2DModel | DDPMUNet, given: list[str] | None, null_label: Any
) -> tuple[str, ...]:
    """The names in the description, or "class 0" and so on, checked against the network."""
    if isinstance(unet, DDPMUNet):
        classes = unet.num_classes
        rows = classes if unet.null_label is None else classes + 1
        if null_label not in (None, unet.null_label):
            raise PeckerError(
                f"model folder {root}: null_label in {DESCRIPTION} is {null_label!r}, but the "
                f"network's own label of no class is {unet.null_label}; remove the entry"
            )
    elif isinstance(unet.class_embedding, torch.nn.Embedding):
        rows = unet.class_embedding.num_embeddings
        classes = rows if null_label is None else rows - 1
    else:
        raise PeckerError(
            f"model folder {root}: the network has no class embedding (num_class_embeds is "
            f"{unet.config.num_class_embeds}); erasing a class needs a class-conditional model"
        )
    names = tuple(given or (f"class {index}" for index in range(classes)))
    if len(names) > classes:
        raise PeckerError(
            f"model folder {root}: {DESCRIPTION} names {len(names)} classes, "
            f"the network has {classes}"
        )
    if null_label is not None and (
        not isinstance(null_label, int) or not len(names) <= null_label < rows
    ):
        raise PeckerError(
            f"model folder {root}: null_label {null_label!r} in {DESCRIPTION} must be a label "
            f"behind the {len(names)} classes in the network's table of {rows}"
        )
    return names


def _load_unet(folder: Path) -> UNet2DModel | DDPMUNet:
    known: dict[str, Any] = {"UNet2DModel": UNet2DModel, "DDPMUNet": DDPMUNet}
    try:
        kind = json.loads((folder / "config.json").read_text()).get("_class_name", "UNet2DModel")
        if kind in known:
            unet, loaded = known[kind].from_pretrained(
                folder, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
    except Exception as error:  # diffusers and safetensors raise many kinds for a broken file
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise PeckerError(
            f"model folder {folder}: the network cannot be read ({first_line}); "
            "the file may be truncated: copy it again"
        ) from error
    if kind not in known:
        raise PeckerError(
            f"model folder {folder}: config.json is of a {kind!r}, expected {' or '.join(known)}"
        )
    # diffusers would go on with random values for what is missing.
    for problem in ("missing_keys", "unexpected_keys"):
        if loaded[problem]:
            names = sorted(loaded[problem])
            raise PeckerError(
                f"model folder {folder}: {WEIGHTS} does not fit config.json, {len(names)} "
                f"{problem.replace('_', ' ')}, first {names[0]!r}; copy both files again"
            )
    return unet.float().eval()


def _load_scheduler(root: Path) -> DDPMScheduler:
    for folder in (root / "scheduler", root):
        if (folder / "scheduler_config.json").is_file():
            return DDPMScheduler.from_pretrained(folder, local_files_only=True)
    raise PeckerError(
        f"model folder {root}: scheduler/scheduler_config.json is missing; the noise schedule the "
        "network was trained with is needed: DDPMScheduler(...).save_pretrained(folder/'scheduler')"
    )


def _load_description(root: Path) -> dict[str, Any]:
    file = root / DESCRIPTION
    if not file.is_file():
        return {}
    try:
        description = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise PeckerError(f"{file}: not valid JSON ({error}); restore the file") from error
    if not isinstance(description, dict):
        raise PeckerError(f"{file}: expected a JSON object, got {type(description).__name__}")
    return description
