"""The parts of the small text-to-image pipeline, in Stable Diffusion's format.

Everything is what diffusers and transformers load by themselves; only the sizes differ. Images are
32x32 in colour, which the autoencoder turns into latents of 4x8x8.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from pipeline_tokenizer import END, START, learn_bpe
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pecker_fast.files import write_text
from pecker_fast.machine import machine_facts, versions

__all__ = [
    "AutoencoderRecipe",
    "DenoiserRecipe",
    "assemble",
    "build_autoencoder",
    "build_scheduler",
    "build_text_encoder",
    "build_tokenizer",
    "build_unet",
    "finish",
]


@dataclass(frozen=True)
class AutoencoderRecipe:
    """How the shipped autoencoder was trained."""

    image_channels: int = 3
    channels: tuple[int, ...] = (16, 32, 32)  # width of each resolution level: 32x32, 16x16, 8x8
    steps: int = 6000
    batch_size: int = 16  # images a step
    learning_rate: float = 4e-3  # peak; a twentieth of the steps up, then half a cosine to 0
    kl_weight: float = 3e-4  # of the mean divergence of a latent, beside the mean absolute error
    ema_decay: float = 0.998  # per step
    seed: int = 0


@dataclass(frozen=True)
class DenoiserRecipe:
    """How the shipped U-Net was trained, together with its text encoder."""

    channels: tuple[int, ...] = (64, 64)  # width of each level; attention at 8x8 and in the middle
    text_width: int = 96
    text_layers: int = 2
    text_length: int = 24  # tokens, start and end included
    steps: int = 3000
    batch_size: int = 64  # images a step
    learning_rate: float = 1.5e-3  # peak; a twentieth of the steps up, then half a cosine to 0
    ema_decay: float = 0.998  # per step
    empty_prompts: float = 0.1  # share of the captions replaced by "", for guidance
    unknown_words: float = 0.2  # share of the captions with words of random letters put in
    seed: int = 0


def build_tokenizer(captions: Sequence[str], length: int, folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer in whose vocabulary every word of `captions` is one token.

    All single bytes are in the vocabulary too, so that any text can be encoded.
    """
    vocabulary, merges = learn_bpe(captions)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False) + "\n")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")
    configuration: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": length,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(configuration, indent=2) + "\n")
    special = {name: value for name, value in configuration.items() if name.endswith("_token")}
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def build_text_encoder(recipe: DenoiserRecipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of the recipe's size."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            projection_dim=recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=4,
            max_position_embeddings=recipe.text_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_autoencoder(recipe: AutoencoderRecipe) -> AutoencoderKL:
    """An autoencoder between images (`image_channels`, 32, 32) and latents (4, 8, 8)."""
    levels = len(recipe.channels)
    return AutoencoderKL(
        in_channels=recipe.image_channels,
        out_channels=recipe.image_channels,
        latent_channels=4,
        sample_size=32,
        block_out_channels=recipe.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
    )


def build_unet(recipe: DenoiserRecipe) -> UNet2DConditionModel:
    """A noise predictor for latents (4, 8, 8), conditioned on encoded captions."""
    levels = len(recipe.channels)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=recipe.channels,
        down_block_types=("CrossAttnDownBlock2D",) + ("DownBlock2D",) * (levels - 1),
        up_block_types=("UpBlock2D",) * (levels - 1) + ("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=recipe.text_width,
        attention_head_dim=4,  # diffusers takes this as the number of heads
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.5, sampled by DDIM."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def assemble(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """The parts as a pipeline, in eval mode, with neither safety checker nor progress bar."""
    for network in (vae, text_encoder, unet):
        network.train(False)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def finish(
    pipeline: StableDiffusionPipeline,
    description: dict[str, Any],
    recipes: tuple[AutoencoderRecipe, DenoiserRecipe],
    work: Path,
    out: Path,
) -> None:
    """Write a pipeline folder that every supported version of diffusers and transformers loads.

    Args:
        pipeline: what to write.
        description: for pecker_fast.json, beside how it was trained.
        recipes: how the autoencoder was trained and how the rest.
        work: folder of the training, which is removed.
        out: the folder to write, whole or not at all.

    Weights stay float32: transformers 5 keeps the type of the file and diffusers does not, so a
    half-precision text encoder would meet a float32 U-Net.
    """
    pixels, text = recipes
    training = {
        "autoencoder": asdict(pixels),
        "denoiser": asdict(text),
        **machine_facts(pipeline.device),
        **versions(),
    }
    folder = work / "pipeline"
    pipeline.to("cpu")
    pipeline.save_pretrained(folder)
    # transformers 5 writes the names of the text encoder's weights without "text_model." and reads
    # them with it; older versions know them only with it.
    file = folder / "text_encoder" / "model.safetensors"
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": value.contiguous().cpu()
        for name, value in pipeline.text_encoder.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(weights, file, metadata={"format": "pt"})
    # It also writes the tokenizer as one file that older versions do not read.
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(work / "tokenizer", folder / "tokenizer")
    told = json.dumps({**description, "training": training}, indent=2)
    write_text(folder / "pecker_fast.json", told + "\n")
    os.replace(folder, out)
    shutil.rmtree(work)
