"""A text-to-image model as a folder of diffusers; `architectures/` has the families that are known.

    model_index.json, tokenizer/, text_encoder/, unet/, vae/, scheduler/

The parts are loaded one by one, without the pipeline's safety checker: only network, schedule and
text encoders take part in the distillation; the autoencoder makes previews.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json, replacing_folder, write_text
from pecker_fast.models import latents
from pecker_fast.models.architectures import ARCHITECTURES, Architecture, architecture_of
from pecker_fast.models.description import (
    DESCRIPTION,
    INDEX,
    PipelineDescription,
    pipeline_parts,
    read_about,
    read_description,
)
from pecker_fast.models.model import Asked, Model
from pecker_fast.models.schedules import is_flow
from pecker_fast.models.texts import Texts
from pecker_fast.models.weights import PLAIN, of_variant, save_network, weights_in

__all__ = ["DESCRIPTION", "PipelineFolder", "load_unet"]


@dataclass(frozen=True)
class PipelineFolder(Model):
    """A pipeline on disk, with what the distillation needs of it loaded."""

    path: Path
    architecture: Architecture
    network: Any  # the network that denoises
    scheduler_config: dict[str, Any]  # of the noise schedule it was trained with
    texts: Texts  # prompts -> conditions
    # What pecker_fast.json holds beside it, e.g. figures and the step of one-step sampling.
    description: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None  # of the weights there
    class_names = ()  # prompts are told

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent image; as the description says, where the network takes any."""
        channels, height, width = super().network_shape
        side = self.description.get("sample_size")
        if side is not None and not hasattr(self.network.config, "sample_size"):
            height = width = side
        return channels, height, width

    @property
    def schedule(self) -> dict[str, Any]:
        """Configuration of the noise schedule."""
        return self.scheduler_config

    @property
    def card(self) -> dict[str, Any]:
        """The description."""
        return self.description

    @cached_property
    def vae(self) -> latents.Autoencoder:
        """The autoencoder, read when it is first asked for; in float32: some overflow in float16.

        Raises:
            PeckerError: it is missing or damaged, or of other latent images.
        """
        with of_variant(self.variant):
            return latents.load_autoencoder(self.path / "vae", self.network_shape[0])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H', W') of an image; the autoencoder is read for it."""
        _, height, width = self.shape
        scale = latents.pixels(self.vae)
        return 3, height * scale, width * scale

    def scale(self, guidance: float) -> float:
        """Return kappa, which guidance is as the pipelines of diffusers count it."""
        return guidance

    def condition(self, asked: Asked, device: torch.device | None = None) -> Tensor:
        """Return the embeddings of prompts, (N, ...) on the CPU; None is the empty prompt.

        Raises:
            PeckerError: a prompt that is no text in Unicode.
        """
        return self.texts.encode(["" if text is None else str(text) for text in asked], device)

    def images(self, samples: Tensor) -> Tensor:
        """Turn latents into images (N, 3, H', W') in [-1, 1] on the CPU; grey becomes colour."""
        images = latents.decode(self.vae.to(samples.device), samples).clamp(-1.0, 1.0)
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    @classmethod
    def load(cls, path: str | os.PathLike[str], variant: str | None = None) -> PipelineFolder:
        """Read a pipeline folder; nothing is downloaded. Its autoencoder is compared, not read.

        Raises:
            PeckerError: no such folder, a pipeline of another kind, or a part that is missing or
                damaged.
        """
        root = Path(path)
        if root.is_file():
            raise PeckerError(
                f"pipeline {root}: is a file; expected a folder that save_pretrained wrote. For a "
                "checkpoint in one file give erase --pipeline-config FOLDER (pipeline_config in "
                "Python) as well, the folder of a pipeline of the same kind"
            )
        name, parts = pipeline_parts(root / INDEX)
        architecture = architecture_of(name, parts, root)
        for part in ("scheduler", *architecture.parts):
            if parts.get(part, "") is not None and not (root / part).is_dir():
                raise PeckerError(
                    f"pipeline folder {root}: {part}/ is missing; expected what "
                    f"{name}.save_pretrained writes"
                )
        # Small files first: what is wrong there is said at once.
        description, schedule, _ = read_description(root, PipelineDescription)
        if is_flow(schedule) != architecture.flow:
            raise PeckerError(
                f"pipeline folder {root}: the noise schedule of a {schedule['_class_name']} is "
                f"none of {architecture.name}'s"
            )
        with of_variant(variant):
            network = architecture.load_network(root / architecture.denoiser)
            texts = architecture.load_texts(root, network.config)
            loaded = cls(root, architecture, network, schedule, texts, description, variant)
            latents.check_autoencoder(root / "vae", loaded.network_shape[0])
        return loaded

    def save(
        self,
        folder: str | os.PathLike[str],
        network: nn.Module | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the pipeline, its other parts as copies; see `Model.save`."""
        part = self.architecture.denoiser
        description = dict(self.description if card is None else card)
        Path(folder).absolute().parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(Path(folder)) as partial:
            shutil.copytree(self.path, partial, ignore=shutil.ignore_patterns(part, DESCRIPTION))
            self._make_plain(partial)
            save_network(self.network if network is None else network, partial / part)
            if description.get("kind") == "generator" and "t_init" in description:
                from pecker_fast.models.one_step import write_prompt_pipeline

                write_prompt_pipeline(
                    partial, self.scheduler_config, description["t_init"], self.network_shape,
                    description.get("sigma_init"),
                )  # fmt: skip
                description = {**description, "schedule": self.scheduler_config}
            write_text(partial / DESCRIPTION, json.dumps(description, indent=1) + "\n")

    def _make_plain(self, copy: Path) -> None:
        """Give the weights of the variant the names that are found without asking for one."""
        for folder in (place for place in copy.iterdir() if self.variant and place.is_dir()):
            for name in (PLAIN, "model.safetensors"):
                with of_variant(self.variant), suppress(PeckerError):
                    found = weights_in(folder, name)
                    if found.variant:
                        found.listed.replace(folder / found.plain)


def load_unet(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """A network that denoises for prompts, e.g. a one-step generator to start from.

    Returns:
        The network in float32 or float64, and what pecker_fast.json says of it.

    Raises:
        PeckerError: it, or what describes it, cannot be read.
    """
    root = Path(path)
    places = [root / name for name in dict.fromkeys(f.denoiser for f in ARCHITECTURES)]
    folder = next((place for place in places if place.is_dir()), root)
    description = read_about(root, PipelineDescription)
    config = read_json(folder / "config.json")
    # The last that fits: Stable Diffusion takes any U-Net of a text.
    fitting = [f for f in ARCHITECTURES if isinstance(config, dict) and f.is_network(config)]
    network: Any = (fitting or ARCHITECTURES[:1])[-1].load_network(folder)
    return network if network.dtype == torch.float64 else network.float(), description
