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
from pecker_fast.files import read_json, replacing_folder, shown, write_text
from pecker_fast.models import latents as latent_images
from pecker_fast.models.architectures import ARCHITECTURES, Architecture, architecture_of
from pecker_fast.models.folder import DESCRIPTION, WEIGHTS
from pecker_fast.models.latents import Autoencoder, load_autoencoder
from pecker_fast.models.model import Asked, pixels_of, predict
from pecker_fast.models.schemas import (
    PipelineDescription,
    pipeline_parts,
    read_config,
)
from pecker_fast.models.texts import Texts
from pecker_fast.models.weights import of_variant, save_network, weights_in
from pecker_fast.runs.reading import checked

__all__ = ["DESCRIPTION", "PipelineFolder", "load_unet"]


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline on disk, with what the distillation needs of it loaded."""

    path: Path
    architecture: Architecture
    network: Any  # the network that denoises
    scheduler_config: dict[str, Any]  # of the noise schedule it was trained with
    texts: Texts  # prompts -> conditions
    # What pecker_fast.json holds beside it, e.g. figures and the step of one-step sampling.
    description: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None  # of the weights there

    @property
    def prediction_type(self) -> str:
        """What the network predicts, as diffusers calls it."""
        flow = "beta_start" not in self.scheduler_config
        default = "flow_prediction" if flow else "epsilon"
        return str(self.scheduler_config.get("prediction_type", default))

    @property
    def has_guidance(self) -> bool:
        """Whether guidance is built into the network, which wants none by a second prompt."""
        return self.architecture.has_guidance(self.network.config)

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent image; as the description says, where the network takes any."""
        channels, height, width = self.architecture.sample_shape(self.network.config)
        side = self.description.get("sample_size")
        if side is not None and not hasattr(self.network.config, "sample_size"):
            height = width = side
        return channels, height, width

    @property
    def schedule(self) -> dict[str, Any]:
        """Configuration of the noise schedule."""
        return self.scheduler_config

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent image."""
        return self.network_shape

    @property
    def card(self) -> dict[str, Any]:
        """The description."""
        return self.description

    @property
    def tokens(self) -> int:
        """Tokens that the network makes of an image; the steps of a flow may depend on it."""
        return self.architecture.tokens(self.shape, self.network.config)

    @cached_property
    def vae(self) -> Autoencoder:
        """The autoencoder, read when it is first asked for; in float32: some overflow in float16.

        Raises:
            PeckerError: it is missing or damaged, or of other latent images.
        """
        with of_variant(self.variant):
            return load_autoencoder(self.path / "vae", self.network_shape[0])

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: it is told prompts."""
        return ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H', W') of an image; the autoencoder is read for it."""
        _, height, width = self.shape
        scale = latent_images.pixels(self.vae)
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

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return what a network of this architecture predicts; see `Model.predict`."""
        return predict(self.architecture.call, network, x_t, t, condition)

    def images(self, samples: Tensor) -> Tensor:
        """Turn latents into images (N, 3, H', W') in [-1, 1] on the CPU; grey becomes colour."""
        images = latent_images.decode(self.vae.to(samples.device), samples).clamp(-1.0, 1.0)
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    def decode(self, samples: Tensor) -> Tensor:
        """Turn latents into the pixels of PNGs, (N, 3, H', W') uint8 on the CPU."""
        return pixels_of(self.images(samples))

    @classmethod
    def load(cls, path: str | os.PathLike[str], variant: str | None = None) -> PipelineFolder:
        """Read a pipeline folder; nothing is downloaded.

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
        name, parts = pipeline_parts(root / "model_index.json")
        architecture = architecture_of(name, parts, root)
        for part in ("scheduler", *architecture.parts):
            if part != "vae" and parts.get(part, "") is not None and not (root / part).is_dir():
                raise PeckerError(
                    f"pipeline folder {root}: {part}/ is missing; expected what "
                    f"{name}.save_pretrained writes"
                )
        # Small files first: what is wrong there is said at once.
        file = root / "scheduler" / "scheduler_config.json"
        schedule = architecture.read_schedule(file)
        about = root / DESCRIPTION
        description = read_config(about, PipelineDescription) if os.path.lexists(about) else {}
        # Of a one-step generator scheduler/ takes that one step.
        schedule = description.pop("schedule", None) or schedule
        if (description.get("t_init") or 0) >= (steps := schedule["num_train_timesteps"]):
            raise PeckerError(
                f"{about}: t_init must be below the {steps} time steps of the noise schedule, got "
                f"{shown(description['t_init'])}"
            )
        file = root / architecture.denoiser / "config.json"
        config = checked(architecture.schema, read_json(file), file)
        with of_variant(variant):
            texts = architecture.load_texts(root, config)
            network = architecture.load_network(file.parent)
        return cls(root, architecture, network, schedule, texts, description, variant)

    def save(
        self,
        folder: str | os.PathLike[str],
        network: nn.Module | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the pipeline whole or not at all, in the place of a folder that is there.

        Args:
            folder: where; not the pipeline's own, whose other parts are copied.
            network: takes the place of the pipeline's. None: its own.
            card: takes the place of the description.
        """
        part = self.architecture.denoiser
        network = self.network if network is None else network
        description = dict(self.description if card is None else card)
        Path(folder).absolute().parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(Path(folder)) as partial:
            shutil.copytree(self.path, partial, ignore=shutil.ignore_patterns(part, DESCRIPTION))
            self._make_plain(partial)
            save_network(network, partial / part)
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
            for name in (WEIGHTS, "model.safetensors"):
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
    about = root / DESCRIPTION
    description = read_config(about, PipelineDescription) if os.path.lexists(about) else {}
    config = read_json(folder / "config.json")
    fitting = [f for f in ARCHITECTURES if isinstance(config, dict) and f.is_network(config)]
    network: Any = (fitting or ARCHITECTURES)[0].load_network(folder)
    return network if network.dtype == torch.float64 else network.float(), description
