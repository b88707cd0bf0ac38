"""A class-conditional diffusion model as a folder on disk: network, noise schedule, class names.

Layout, diffusers' own plus one file::

    unet/config.json, unet/diffusion_pytorch_model.safetensors     save_pretrained of the network
    scheduler/scheduler_config.json                                DDPMScheduler.save_pretrained
    pecker_fast.json    class names, patch size, label of "no class", figures (optional)

of a one-step generator with a scheduler that takes this step, and then also::

    model_index.json, README.md         how diffusers draws from it
    pecker_fast.json    has `schedule`, the whole noise schedule, as a scheduler's configuration

The network is diffusers' `UNet2DModel` or this package's `DDPMUNet`; unet/config.json says which.
A bare network folder (config.json at its top) loads too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DModel

from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json, replacing_folder, shown, write_text
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.schemas import (
    ClassDescription,
    ClassUNetConfig,
    DDPMUNetConfig,
    ScheduleConfig,
    read_config,
)
from pecker_fast.models.weights import load_network, weights_in
from pecker_fast.runs.classes import class_index
from pecker_fast.runs.reading import Schema

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
        network: the noise predictor, class-conditional: `network(x, t, labels).sample`.
        scheduler: the noise schedule it was trained with.
        class_names: one name per class, by class index.
        patch_size: the network sees `patch_size**2` neighbouring pixels as channels (1: pixels).
        figures: measured figures that ship with the model, e.g. its accuracy in 50 steps.
        kind: "teacher" (many steps) or "generator" (made for one step).
        null_label: the label that means "no class", which guidance needs; None: the network has
            none. A `DDPMUNet` says itself.
    """

    network: UNet2DModel | DDPMUNet
    scheduler: DDPMScheduler
    class_names: tuple[str, ...]
    patch_size: int = 1
    figures: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "teacher"
    null_label: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.network, DDPMUNet):
            object.__setattr__(self, "null_label", self.network.null_label)

    @property
    def num_classes(self) -> int:
        """Number of classes the network is conditioned on."""
        return len(self.class_names)

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""
        size = self.network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.network.config.in_channels, height, width

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

    def about_network(self) -> dict[str, Any]:
        """What the folder says about the network besides its schedule, by name."""
        return {
            "class names": self.class_names,
            "null label": self.null_label,
            "patch size": self.patch_size,
        }

    def with_network(self, network: UNet2DModel | DDPMUNet, kind: str) -> ModelFolder:
        """The same description around another network; the figures do not carry over."""
        return replace(self, network=network, kind=kind, figures={})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelFolder:
        """Read a model folder.

        Raises:
            PeckerError: nothing there, a truncated file, weights that are not the network's, a
                network without classes, no schedule or one of another noise process, or a
                description that does not fit the network.
        """
        root = Path(path)
        if root.is_file():
            raise PeckerError(
                f"model {root}: is a file; expected a folder with unet/ and scheduler/, or what "
                "save_pretrained of a network writes; a published checkpoint goes through "
                "`pecker-fast convert` first"
            )
        unet_folder = root if (root / "config.json").is_file() else root / "unet"
        if not (unet_folder / "config.json").is_file():
            raise PeckerError(
                f"model folder {root}: unet/config.json is missing; expected a folder saved by "
                "save_pretrained of a network, or one with unet/ and scheduler/"
            )
        weights_in(unet_folder, WEIGHTS)
        # Small files first: what is wrong there is said at once.
        about = root / DESCRIPTION
        described = read_config(about, ClassDescription) if os.path.lexists(about) else {}
        scheduler = _load_scheduler(root, described.get("schedule"))
        network = _load_network(unet_folder)
        null_label = described.get("null_label")
        names = _class_names(root, network, described.get("class_names"), null_label)
        patch_size = described.get("patch_size", 1)
        channels = network.config.in_channels
        if channels % patch_size**2:
            raise PeckerError(
                f"model folder {root}: patch_size {patch_size} in {DESCRIPTION} must be a whole "
                f"number whose square divides the network's {channels} channels"
            )
        figures = described.get("figures", {})
        t_init, steps = figures.get("t_init") or 0, scheduler.config.num_train_timesteps
        if t_init >= steps:
            raise PeckerError(
                f"{about}: figures.t_init must be below the {steps} time steps of the noise "
                f"schedule, got {shown(t_init)}"
            )
        return cls(
            network=network,
            scheduler=scheduler,
            class_names=names,
            patch_size=patch_size,
            figures=figures,
            kind=described.get("kind", "teacher"),
            null_label=null_label,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder. `pecker_fast.json` comes last: a folder that has it is complete."""
        root = Path(path)
        self.network.save_pretrained(root / "unet")
        description: dict[str, Any] = {
            "kind": self.kind,
            "class_names": list(self.class_names),
            "patch_size": self.patch_size,
            "null_label": self.null_label,
            "figures": dict(self.figures),
        }
        t_init = self.figures.get("t_init")
        if self.kind == "generator" and t_init is not None:
            from pecker_fast.models.one_step import one_step_scheduler, write_class_pipeline

            one_step_scheduler(self.scheduler.config, t_init).save_pretrained(root / "scheduler")
            write_class_pipeline(root, self.network, self.patch_size, self.class_names)
            description["schedule"] = json.loads(self.scheduler.to_json_string())
        else:
            self.scheduler.save_pretrained(root / "scheduler")
        write_text(root / DESCRIPTION, json.dumps(description, indent=2) + "\n")

    def save_whole(self, path: Path) -> None:
        """Write the folder whole or not at all, in the place of one that may be there."""
        with replacing_folder(path) as partial:
            self.save(partial)


def _class_names(
    root: Path, network: UNet2DModel | DDPMUNet, given: list[str] | None, null_label: int | None
) -> tuple[str, ...]:
    """The names in the description, or "class 0" and so on, checked against the network."""
    if isinstance(network, DDPMUNet):
        classes = network.num_classes
        rows = classes if network.null_label is None else classes + 1
        if null_label not in (None, network.null_label):
            raise PeckerError(
                f"model folder {root}: null_label in {DESCRIPTION} is {shown(null_label)}, but the "
                f"network's own label of no class is {network.null_label}; remove the entry"
            )
    elif isinstance(network.class_embedding, torch.nn.Embedding):
        rows = network.class_embedding.num_embeddings
        classes = rows if null_label is None else rows - 1
    else:
        raise PeckerError(
            f"model folder {root}: the network has no class embedding (num_class_embeds is "
            f"{network.config.num_class_embeds}); erasing a class needs a class-conditional model"
        )
    names = tuple(given or (f"class {index}" for index in range(classes)))
    if len(names) > classes:
        raise PeckerError(
            f"model folder {root}: {DESCRIPTION} names {len(names)} classes, "
            f"the network has {classes}"
        )
    if null_label is not None and not len(names) <= null_label < rows:
        raise PeckerError(
            f"model folder {root}: null_label {shown(null_label)} in {DESCRIPTION} must be a label "
            f"behind the {len(names)} classes in the network's table of {rows}"
        )
    return names


def _load_network(folder: Path) -> UNet2DModel | DDPMUNet:
    known: dict[str, tuple[Any, type[Schema]]] = {
        "UNet2DModel": (UNet2DModel, ClassUNetConfig),
        "DDPMUNet": (DDPMUNet, DDPMUNetConfig),
    }
    file = folder / "config.json"
    config = read_json(file)
    kind = config.get("_class_name") if isinstance(config, dict) else config
    if kind not in ("UNet2DModel", "DDPMUNet"):
        remedy = "; give a text-to-image pipeline as --pipeline" if "Condition" in str(kind) else ""
        raise PeckerError(f"{file}: is of a {shown(kind)}, expected {' or '.join(known)}{remedy}")
    made_of, schema = known[kind]
    config = read_config(file, schema)
    make = partial(made_of.from_config, config)
    # Without the package accelerate diffusers would say at length that it does just this.
    network = load_network(made_of, folder, WEIGHTS, make, low_cpu_mem_usage=False)
    return network.float().eval()


def _load_scheduler(root: Path, described: Mapping[str, Any] | None) -> DDPMScheduler:
    if described is not None:
        return DDPMScheduler.from_config(described)
    for folder in (root / "scheduler", root):
        file = folder / "scheduler_config.json"
        if file.exists():
            return DDPMScheduler.from_config(read_config(file, ScheduleConfig))
    raise PeckerError(
        f"model folder {root}: scheduler/scheduler_config.json is missing; the noise schedule the "
        "network was trained with is needed: DDPMScheduler(...).save_pretrained(folder/'scheduler')"
    )
