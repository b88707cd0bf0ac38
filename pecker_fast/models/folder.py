"""A class-conditional diffusion model as a folder on disk: network, noise schedule, class names.

Layout, diffusers' own plus one file::

    unet/config.json, unet/diffusion_pytorch_model.safetensors     save_pretrained of the network
    scheduler/scheduler_config.json                                save_pretrained of a scheduler
    vae/config.json, vae/diffusion_pytorch_model.safetensors       where it draws latent images
    pecker_fast.json    class names, patch size, label of "no class", figures (optional)

of a one-step generator with a scheduler that takes this step, and then also::

    model_index.json, README.md         how diffusers draws from it
    pecker_fast.json    has `schedule`, the whole noise schedule, as a scheduler's configuration

The network is diffusers' `UNet2DModel`, this package's `DDPMUNet`, or diffusers'
`DiTTransformer2DModel` in transformer/ with model_index.json, as `DiTPipeline` saves it; its
config.json says which. A bare network folder (config.json at its top) loads too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json, replacing_folder, shown, write_text
from pecker_fast.models import latents
from pecker_fast.models.architectures import CLASS_NETWORKS, ClassNetwork, class_network
from pecker_fast.models.description import (
    DESCRIPTION,
    INDEX,
    ClassDescription,
    pipeline_parts,
    read_description,
)
from pecker_fast.models.model import Asked, Model
from pecker_fast.models.schedules import Scheduler
from pecker_fast.models.weights import save_network
from pecker_fast.runs.classes import class_index

if TYPE_CHECKING:
    from pecker_fast.models.latents import Autoencoder

__all__ = ["ModelFolder"]

FILES = (
    DESCRIPTION,
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)
"""What `ModelFolder.save` writes; a test holds the two together."""


@dataclass(frozen=True)
class ModelFolder(Model):
    """A teacher or an erased generator with all that is needed to use it.

    Attributes:
        network: what denoises, class-conditional, one of `CLASS_NETWORKS`.
        scheduler: the noise schedule it was trained with, `DDPMScheduler` or that of a flow.
        class_names: one name per class, by class index.
        patch_size: the network sees `patch_size**2` neighbouring pixels as channels (1: pixels).
        figures: measured figures that ship with the model, e.g. its accuracy in 50 steps.
        kind: "teacher" (many steps) or "generator" (made for one step).
        null_label: the label that means "no class", which guidance needs; None: the network has
            none. All but a `UNet2DModel` say so themselves.
        vae: what the network sees are its latent images; None: pixels.
    """

    network: Any
    scheduler: Scheduler
    class_names: tuple[str, ...]
    patch_size: int = 1
    figures: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "teacher"
    null_label: int | None = None
    vae: Autoencoder | None = None

    def __post_init__(self) -> None:
        known = self.architecture
        known.settle(self.network)
        if known.own_null:
            object.__setattr__(self, "null_label", known.labels(self.network)[1])

    @property
    def architecture(self) -> ClassNetwork:
        """What is known of networks of this kind."""
        return class_network(self.network)

    @property
    def num_classes(self) -> int:
        """Number of classes the network is conditioned on."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image: the network's shape with the patches laid out, or decoded."""
        channels, height, width = self.network_shape
        if self.vae is not None:
            scale = latents.pixels(self.vae)
            return self.vae.config.out_channels, height * scale, width * scale
        return channels // self.patch_size**2, height * self.patch_size, width * self.patch_size

    @property
    def schedule(self) -> Mapping[str, Any]:
        """Configuration of the noise schedule."""
        config: Mapping[str, Any] = self.scheduler.config
        return config

    @property
    def card(self) -> Mapping[str, Any]:
        """The kind and the figures."""
        return {"kind": self.kind, **self.figures}

    def scale(self, guidance: float) -> float:
        """Return kappa of w, by which SA and SalUn ask: (1 + w) eps_c - w eps_null."""
        return 1 + guidance

    def condition(self, asked: Asked, device: torch.device | None = None) -> torch.Tensor:
        """Return the labels of classes, (N,) int64; None is no class.

        Raises:
            PeckerError: no such class, or no label of no class.
        """
        if None in asked and self.null_label is None:
            raise PeckerError(
                "the model has no label for 'no class' (null_label in its pecker_fast.json)"
            )
        labels = [self.null_label if name is None else self.class_index(name) for name in asked]
        return torch.tensor(labels, dtype=torch.int64, device=device)

    def images(self, samples: torch.Tensor) -> torch.Tensor:
        """Turn network samples (N, *network_shape) into images (N, *image_shape) in [-1, 1]."""
        if self.vae is not None:
            return latents.decode(self.vae.to(samples.device), samples).clamp(-1.0, 1.0)
        return F.pixel_shuffle(samples, self.patch_size).clamp(-1.0, 1.0)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images (N, *image_shape) in [-1, 1] into what the network sees."""
        if self.vae is not None:
            return latents.encode(self.vae.to(images.device), images)
        return F.pixel_unshuffle(images, self.patch_size)

    def class_index(self, name: str | int) -> int:
        """The index of a class given by its name (case does not matter) or index.

        Raises:
            PeckerError: no such class; the message lists the classes.
        """
        return class_index(name, self.class_names, "the model")

    def about_network(self) -> dict[str, Any]:
        """What the folder says about the network besides its schedule, by name."""
        about = {
            "class names": self.class_names,
            "null label": self.null_label,
            "patch size": self.patch_size,
        }
        return about if self.vae is None else {**about, "autoencoder": self.vae.state_dict()}

    def with_network(self, network: nn.Module, kind: str) -> ModelFolder:
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
        architecture, folder = _find_network(root)
        # Small files first: what is wrong there is said at once.
        described, _, scheduler = read_description(root, ClassDescription)
        network: Any = architecture.load_network(folder).eval()
        channels, patch_size = network.config.in_channels, described.pop("patch_size", 1)
        vae = _load_vae(root, channels)
        if channels % patch_size**2 or (vae is not None and patch_size != 1):
            raise PeckerError(
                f"model folder {root}: patch_size {patch_size} in {DESCRIPTION} must be a whole "
                f"number whose square divides the network's {channels} channels, and 1 beside an "
                "autoencoder"
            )
        null_label = described.pop("null_label", None)
        given = described.pop("class_names", [])
        try:
            names, null_label = _labels(architecture, network, given, null_label)
        except PeckerError as error:
            raise PeckerError(f"model folder {root}: {DESCRIPTION}: {error}") from None
        return cls(
            network, scheduler, names, patch_size, null_label=null_label, vae=vae, **described
        )

    def save(
        self,
        folder: str | os.PathLike[str],
        network: nn.Module | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the model; see `Model.save`. A card is the kind and the figures."""
        if card is not None:
            figures = {name: value for name, value in card.items() if name != "kind"}
            kind = str(card.get("kind", "teacher"))
            return replace(self, figures=figures, kind=kind).save(folder, network)
        Path(folder).absolute().parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(Path(folder)) as root:
            self._write(root, self.network if network is None else network)

    def _write(self, root: Path, network: Any) -> None:
        part = self.architecture.denoiser
        save_network(network, root / part)
        if self.vae is not None:
            save_network(self.vae, root / "vae")
        description: dict[str, Any] = {
            "kind": self.kind,
            "class_names": list(self.class_names),
            "patch_size": self.patch_size,
            "null_label": self.null_label,
            "figures": dict(self.figures),
        }
        t_init = self.figures.get("t_init")
        if self.kind == "generator" and t_init is not None:
            from pecker_fast.models.one_step import write_class_pipeline

            write_class_pipeline(root, self, t_init)
            description["schedule"] = json.loads(self.scheduler.to_json_string())
        else:
            self.scheduler.save_pretrained(root / "scheduler")
            if part == "transformer":
                index = {
                    "_class_name": "DiTPipeline",
                    part: ["diffusers", type(self.network).__name__],
                    "scheduler": ["diffusers", type(self.scheduler).__name__],
                    "vae": [None, None]
                    if self.vae is None
                    else ["diffusers", type(self.vae).__name__],
                }
                write_text(root / INDEX, json.dumps(index, indent=2) + "\n")
        write_text(root / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _find_network(root: Path) -> tuple[ClassNetwork, Path]:
    """What a folder's network is, and its own folder."""
    parts = [root, *(root / name for name in dict.fromkeys(n.denoiser for n in CLASS_NETWORKS))]
    folder = next((part for part in parts if (part / "config.json").is_file()), None)
    if folder is None:
        raise PeckerError(
            f"model folder {root}: unet/config.json is missing; expected a folder saved by "
            "save_pretrained of a network, or one with unet/ or transformer/ and scheduler/"
        )
    file = folder / "config.json"
    config = read_json(file)
    for known in CLASS_NETWORKS:
        if isinstance(config, dict) and known.is_network(config):
            return known, folder
    kind = config.get("_class_name") if isinstance(config, dict) else config
    remedy = "; give a text-to-image pipeline as --pipeline" if "Condition" in str(kind) else ""
    expected = " or ".join(known.parts[known.denoiser] for known in CLASS_NETWORKS)
    raise PeckerError(f"{file}: is of a {shown(kind)}, expected {expected}{remedy}")


def _labels(
    architecture: ClassNetwork, network: Any, given: list[str], null_label: int | None
) -> tuple[tuple[str, ...], int | None]:
    """Return the names given, or "class 0" and so on, and the label of no class."""
    rows, own = architecture.labels(network)
    if architecture.own_null and null_label not in (None, own):
        raise PeckerError(
            f"null_label is {null_label}, but the network's own label of no class is {own}; remove "
            "the entry"
        )
    null_label = own if architecture.own_null else null_label
    classes = rows if null_label is None else rows - 1
    names = tuple(given or (f"class {index}" for index in range(classes)))
    if len(names) > classes:
        raise PeckerError(f"names {len(names)} classes, the network has {classes}")
    if null_label is not None and not len(names) <= null_label < rows:
        raise PeckerError(
            f"null_label {null_label} must be a label behind the {len(names)} classes in the "
            f"network's table of {rows}"
        )
    return names, null_label


def _load_vae(root: Path, channels: int) -> Autoencoder | None:
    index = root / INDEX
    said = pipeline_parts(index)[1].get("vae") if index.is_file() else None
    if said is None and not (root / "vae").is_dir():
        return None
    return latents.load_autoencoder(root / "vae", channels)
