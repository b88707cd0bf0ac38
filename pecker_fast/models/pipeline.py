"""A text-to-image model as a diffusers pipeline folder: Stable Diffusion 1.x and its like.

    model_index.json, tokenizer/, text_encoder/, unet/, vae/, scheduler/

The parts are loaded one by one, without the pipeline's safety checker: only network, schedule and
text encoder take part in the distillation; the autoencoder makes previews.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json, read_text, replacing_folder, shown, write_text
from pecker_fast.models.folder import DESCRIPTION, WEIGHTS
from pecker_fast.models.schemas import (
    AutoencoderConfig,
    PipelineDescription,
    ScheduleConfig,
    TextEncoderConfig,
    TextUNetConfig,
    pipeline_parts,
    read_config,
)
from pecker_fast.models.weights import load_network
from pecker_fast.runs.reading import Schema

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

__all__ = ["DESCRIPTION", "PipelineFolder", "load_unet"]

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
        if root.is_file():
            raise PeckerError(
                f"pipeline {root}: is a file; expected a folder that "
                "StableDiffusionPipeline.save_pretrained wrote: load the file with from_single_file"
            )
        _check_kind(*pipeline_parts(root / "model_index.json"), root)
        for part in ("unet", "scheduler", "tokenizer", "text_encoder"):
            if not (root / part).is_dir():
                raise PeckerError(
                    f"pipeline folder {root}: {part}/ is missing; expected what "
                    "StableDiffusionPipeline.save_pretrained writes"
                )
        # Small files first: what is wrong there is said at once.
        schedule = read_config(root / "scheduler" / "scheduler_config.json", ScheduleConfig)
        about = root / DESCRIPTION
        description = read_config(about, PipelineDescription) if os.path.lexists(about) else {}
        # Of a one-step generator scheduler/ takes that one step.
        schedule = description.pop("schedule", None) or schedule
        if (description.get("t_init") or 0) >= (steps := schedule["num_train_timesteps"]):
            raise PeckerError(
                f"{about}: t_init must be below the {steps} time steps of the noise schedule, got "
                f"{shown(description['t_init'])}"
            )
        text_encoder = _load_text_encoder(root / "text_encoder")
        return cls(
            root,
            _load_unet(root / "unet", text_encoder.config.hidden_size),
            schedule,
            _load_tokenizer(root / "tokenizer", text_encoder.config),
            text_encoder.eval().requires_grad_(False),
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

        Raises:
            PeckerError: a prompt that is no text in Unicode, as bytes on a command line may be.
        """
        for prompt in prompts:
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise PeckerError(f"prompt {shown(prompt)}: is no UTF-8; type it again")
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

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """The prompts that are too long for the text encoder, and the end that it does not read."""
        limit = self.tokenizer.model_max_length
        longer = {}
        for prompt in prompts:
            tokens = self.tokenizer(prompt, add_special_tokens=False).input_ids
            # Two tokens mark the beginning and the end.
            if len(tokens) > limit - 2:
                longer[prompt] = self.tokenizer.decode(tokens[limit - 2 :]).strip()
        return longer

    def load_decoder(self) -> AutoencoderKL:
        """The autoencoder, for `decode`.

        Raises:
            PeckerError: it is missing or damaged, or of other latent images.
        """
        from diffusers import AutoencoderKL

        decoder = _load_network(self.path / "vae", AutoencoderKL, AutoencoderConfig)
        theirs, ours = decoder.config.latent_channels, self.unet.config.in_channels
        if theirs != ours:
            raise PeckerError(
                f"{self.path / 'vae'}: decodes {theirs} channels, the network draws {ours}; take "
                "both from one pipeline"
            )
        return decoder.eval().requires_grad_(False)

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
            if description.get("kind") == "generator" and "t_init" in description:
                from pecker_fast.models.one_step import write_prompt_pipeline

                write_prompt_pipeline(partial, self.scheduler_config, description["t_init"])
                description = {**description, "schedule": self.scheduler_config}
            write_text(partial / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def load_unet(path: str | os.PathLike[str]) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    """A U-Net saved by diffusers, e.g. a one-step generator to start from.

    Args:
        path: its folder, or that of a pipeline around it.

    Returns:
        The network in float32 or float64, and what pecker_fast.json says of it.

    Raises:
        PeckerError: it, or what describes it, cannot be read.
    """
    root = Path(path)
    folder = root / "unet" if (root / "unet").is_dir() else root
    about = root / DESCRIPTION
    description = read_config(about, PipelineDescription) if os.path.lexists(about) else {}
    unet = _load_unet(folder, None)
    return unet if unet.dtype == torch.float64 else unet.float(), description


def _check_kind(name: str, parts: Mapping[str, str | None], root: Path) -> None:
    """Refuse pipelines whose network or text encoder is another one."""
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
    wanted = {
        "unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "vae": "AutoencoderKL",
        "tokenizer": "CLIPTokenizer",
    }  # fmt: skip
    for part, kind in wanted.items():
        if str(parts.get(part)).removesuffix("Fast") != kind:
            raise PeckerError(
                f"pipeline folder {root}: {name} has {part} {parts.get(part)}; expected {kind}"
            )


def _load_unet(folder: Path, text_width: int | None) -> UNet2DConditionModel:
    """The network, for texts of that width where it is known."""
    from diffusers import UNet2DConditionModel

    unet: UNet2DConditionModel = _load_network(folder, UNet2DConditionModel, TextUNetConfig)
    widths = unet.config.cross_attention_dim
    for width in [widths] if isinstance(widths, int) else widths:
        if text_width not in (None, width):
            raise PeckerError(
                f"{folder}: takes texts of width {width}, the text encoder gives {text_width}; "
                "take both from one pipeline"
            )
    return unet


def _load_network(folder: Path, kind: Any, schema: type[Schema]) -> Any:
    config = read_config(folder / "config.json", schema)
    make = partial(kind.from_config, config)
    # Without the package accelerate diffusers would say at length that it does just this.
    return load_network(kind, folder, WEIGHTS, make, low_cpu_mem_usage=False)


def _load_text_encoder(folder: Path) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = read_config(folder / "config.json", TextEncoderConfig)
    return load_network(
        CLIPTextModel,
        folder,
        "model.safetensors",
        lambda: CLIPTextModel(CLIPTextConfig(**config)),
    )


def _load_tokenizer(folder: Path, encoder: Any) -> Any:
    """The tokenizer, which makes no text longer than the text encoder takes.

    Args:
        folder: with its files.
        encoder: configuration of the text encoder.
    """
    from transformers import CLIPTokenizer

    for file in sorted(folder.glob("*.json")):
        if not isinstance(content := read_json(file), dict):
            raise PeckerError(f"{file}: expected an object, got {shown(content)}")
    merges = folder / "merges.txt"
    lines = read_text(merges).split("\n") if merges.exists() else ["#version"]
    if lines == [""] or not all(len(s.split(" ")) == 2 for s in lines if s[:1] not in "#"):
        raise PeckerError(f"{merges}: expected two tokens on each line; copy the tokenizer again")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise PeckerError(
            f"{folder}: the tokenizer has neither tokenizer.json nor vocab.json; copy it again"
        )
    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        size, longest = len(tokenizer), int(tokenizer.model_max_length)
    except Exception as error:  # transformers raises many kinds for damaged files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PeckerError(f"{folder}: the tokenizer cannot be read ({reason})") from error
    said = tokenizer.model_max_length
    if size > encoder.vocab_size or longest < 1 or longest != said or tokenizer.pad_token is None:
        raise PeckerError(
            f"{folder}: the tokenizer has {size} tokens, texts of up to {shown(said)} and the "
            f"padding {tokenizer.pad_token!r}; expected some padding and at most the "
            f"{encoder.vocab_size} tokens of the text encoder: take both from one pipeline"
        )
    # A tokenizer that does not say how long its texts may be gives 10^30.
    tokenizer.model_max_length = min(longest, encoder.max_position_embeddings)
    return tokenizer
