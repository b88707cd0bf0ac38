"""A text-to-image model as a diffusers pipeline folder: Stable Diffusion 1.x and its like.

    model_index.json, tokenizer/, text_encoder/, unet/, vae/, scheduler/

The parts are loaded one by one, without the pipeline's safety checker: only network, schedule and
text encoder take part in the distillation; the autoencoder makes previews.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import replacing_folder, write_text

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

__all__ = ["DESCRIPTION", "PipelineFolder", "load_unet"]

DESCRIPTION = "pecker_fast.json"
_CHUNK = 64  # prompts or images at a time


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline on disk, with what the distillation needs of it loaded.

    Attributes:
        path: the folder.
        unet: the noise predictor.
        scheduler_config: of the noise schedule it was trained with.
        prediction_type: "epsilon" or "v_prediction".
        tokenizer: text -> tokens.
        text_encoder: tokens -> embeddings.
        description: what pecker_fast.json holds beside it, e.g. figures and the step of one-step
            sampling.
    """

    path: Path
    unet: UNet2DConditionModel
    scheduler_config: dict[str, Any]
    tokenizer: Any
    text_encoder: nn.Module
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def prediction_type(self) -> str:
        """What the network predicts, as diffusers calls it."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent image."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PipelineFolder:
        """Read a pipeline folder; nothing is downloaded.

        Raises:
            PeckerError: no such folder, a pipeline of another kind, or a part that is missing or
                damaged.
        """
        root = Path(path)
        index = _read_json(root / "model_index.json", root)
        _check_kind(index, root)
        for part in ("unet", "scheduler", "tokenizer", "text_encoder"):
            if not (root / part).is_dir():
                raise PeckerError(
                    f"pipeline folder {root}: {part}/ is missing; expected what "
                    "StableDiffusionPipeline.save_pretrained writes"
                )
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        description = {}
        if (root / DESCRIPTION).is_file():
            description = _read_json(root / DESCRIPTION, root)
        return cls(
            root,
            _load_network(root, "unet", UNet2DConditionModel),
            _read_json(root / "scheduler" / "scheduler_config.json", root),
            _load(root, "tokenizer", CLIPTokenizer.from_pretrained),
            _load(root, "text_encoder", CLIPTextModel.from_pretrained).eval().requires_grad_(False),
            description,
        )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], device: torch.device | None = None) -> Tensor:
        """The text encoder's embeddings of prompts, as `StableDiffusionPipeline` makes them.

        Args:
            prompts: P texts; those longer than the tokenizer's limit are cut.
            device: where to compute. None = where the text encoder is.

        Returns:
            (P, L, D) on the CPU.
        """
        home = next(self.text_encoder.parameters()).device
        place = home if device is None else device
        encoder = self.text_encoder.to(place)
        found = []
        for first in range(0, len(prompts), _CHUNK):
            tokens = self.tokenizer(
                list(prompts[first : first + _CHUNK]),
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            found.append(encoder(tokens.input_ids.to(place))[0].cpu())
        encoder.to(home)  # it is not needed again
        return torch.cat(found)

    def load_decoder(self) -> AutoencoderKL:
        """The autoencoder, for `decode`.

        Raises:
            PeckerError: it is missing or damaged.
        """
        from diffusers import AutoencoderKL

        return _load_network(self.path, "vae", AutoencoderKL).eval().requires_grad_(False)

    @staticmethod
    @torch.no_grad()
    def decode(decoder: AutoencoderKL, latents: Tensor) -> Tensor:
        """(N, C, H, W) latents as images in [0, 1], on the CPU; grey ones get three channels."""
        scale = decoder.config.scaling_factor
        shift = getattr(decoder.config, "shift_factor", None) or 0.0
        place = next(decoder.parameters())
        images = [
            decoder.decode(part.to(place) / scale + shift).sample.float().cpu()
            for part in torch.split(latents, _CHUNK)
        ]
        decoded = (torch.cat(images) / 2 + 0.5).clamp(0, 1)
        return decoded.expand(-1, 3, -1, -1) if decoded.shape[1] == 1 else decoded

    def save_with(self, unet: nn.Module, path: Path, description: dict[str, Any]) -> None:
        """Write the same pipeline around another network, whole or not at all.

        Args:
            unet: the network, of this pipeline's architecture.
            path: the new folder; one that is there is replaced.
            description: what pecker_fast.json shall hold.
        """
        with replacing_folder(path) as partial:
            shutil.copytree(self.path, partial, ignore=shutil.ignore_patterns("unet", DESCRIPTION))
            unet.save_pretrained(partial / "unet")  # type: ignore[operator]
            write_text(partial / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def load_unet(path: str | os.PathLike[str], like: nn.Module) -> UNet2DConditionModel:
    """A U-Net saved by diffusers, e.g. a one-step generator to start from.

    Args:
        path: its folder, or that of a pipeline around it.
        like: the network whose parameters it must have.

    Raises:
        PeckerError: it cannot be read, or its parameters have other names or shapes.
    """
    from diffusers import UNet2DConditionModel

    root = Path(path)
    folder = root / "unet" if (root / "unet").is_dir() else root
    unet: UNet2DConditionModel = _load_network(folder.parent, folder.name, UNet2DConditionModel)
    shapes, expected = (
        {name: tuple(p.shape) for name, p in network.named_parameters()} for network in (unet, like)
    )
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise PeckerError(
                f"{folder}: parameter {name!r} has shape {shapes.get(name)}, the pipeline's "
                f"network {expected.get(name)}; start from a generator of the same architecture"
            )
    return unet


def _check_kind(index: dict[str, Any], root: Path) -> None:
    """Refuse pipelines whose network or text encoder is another one."""
    name = str(index.get("_class_name", "unknown"))
    parts = {part: value[1] for part, value in index.items() if isinstance(value, list)}
    if "transformer" in parts:
        raise PeckerError(
            f"pipeline folder {root}: {name} denoises with the transformer {parts['transformer']}; "
            "supported are pipelines with a UNet2DConditionModel, such as Stable Diffusion 1.x"
        )
    if parts.get("text_encoder_2") is not None:
        raise PeckerError(
            f"pipeline folder {root}: {name} has two text encoders; Stable Diffusion XL is not "
            "supported yet: its network needs pooled embeddings and image sizes as well"
        )
    if parts.get("unet") != "UNet2DConditionModel" or parts.get("text_encoder") != "CLIPTextModel":
        raise PeckerError(
            f"pipeline folder {root}: {name} has unet {parts.get('unet')} and text_encoder "
            f"{parts.get('text_encoder')}; expected UNet2DConditionModel and CLIPTextModel"
        )


def _read_json(file: Path, root: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PeckerError(
            f"pipeline folder {root}: {file.relative_to(root)} is missing; expected what "
            "StableDiffusionPipeline.save_pretrained writes"
        ) from None
    except (OSError, ValueError) as error:
        raise PeckerError(f"pipeline folder {root}: {file.name} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise PeckerError(f"pipeline folder {root}: {file.name} must hold an object")
    return found


def _load_network(root: Path, part: str, kind: Any) -> Any:
    # Without the package accelerate diffusers would say at length that it does just this.
    return _load(root, part, partial(kind.from_pretrained, low_cpu_mem_usage=False))


def _load(root: Path, part: str, from_pretrained: Any) -> Any:
    try:
        return from_pretrained(str(root / part), local_files_only=True)
    except Exception as error:  # diffusers and transformers raise many kinds for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PeckerError(f"pipeline folder {root}: {part} cannot be read: {reason}") from None
