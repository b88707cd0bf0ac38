"""The networks of whole training iterations: random weights, conditions, published recipes.

Class-conditional presets draw labels. Text-to-image presets draw prompts out of a small table of
random embeddings: no text encoder runs, and none would in a run that caches its prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from pecker_fast_demo import teacher_folder
from torch import Tensor, nn

from pecker_fast.distill import ClassConditions, NoiseSchedule, Objective, PeckerConfig
from pecker_fast.distill.networks import Predictors, diffusers_predictor, guided, predict_noise
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet

_CLASSES = 10
_GUIDANCE = 4.5  # scale of classifier-free guidance of teacher and pseudo-score, for prompts


@dataclass(frozen=True)
class Network:
    """A network and the published recipe around it."""

    # The network, in float32 on the default device. The demo's is the shipped teacher; the others
    # have random weights.
    make: Callable[[], nn.Module]
    batch_sizes: tuple[int, ...]  # B, remain images and again forget images in an iteration
    sample_shape: tuple[int, int, int]  # (C, H, W) of what the network sees
    # Keys of `PeckerConfig` that both loops run with.
    settings: Mapping[str, Any] = field(default_factory=dict)
    # Of what a network of Stable Diffusion is told of one prompt: tokens, width. None: classes.
    prompt_shape: tuple[int, int] | None = None

    @property
    def published_precision(self) -> str:
        """Of the loop as published: "fp32", or "autocast" (bf16)."""
        return "fp32" if self.prompt_shape is None else "autocast"

    @property
    def guidance(self) -> float:
        """Scale of classifier-free guidance; 1 is none."""
        return 1.0 if self.prompt_shape is None else _GUIDANCE

    def schedule(self, config: PeckerConfig) -> NoiseSchedule:
        """Its noise schedule with the time constants of a configuration."""
        if self.prompt_shape is None:
            betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        else:
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        return NoiseSchedule.from_betas(betas, **config.diffusion.model_dump())

    def objective(
        self, network: nn.Module, schedule: NoiseSchedule, config: PeckerConfig, device: str
    ) -> Objective:
        """The trainer's objective around a network; class or prompt 0 is forgotten for 1."""
        conditions = ClassConditions(0, 1, _CLASSES)
        predict = self._predictors(schedule, device)
        return Objective(
            network, schedule, conditions, config, self.sample_shape,
            device=torch.device(device), predict=predict,
        )  # fmt: skip

    def _predictors(self, schedule: NoiseSchedule, device: str) -> Predictors:
        """Labels choose prompts out of a table: a row per prompt, then the empty prompt's.

        With guidance the network sees each image twice, as in every diffusers pipeline:
        `eps = eps_empty + scale (eps_prompt - eps_empty)`. The one-step generator is not guided.
        """
        if self.prompt_shape is None:
            return Predictors.all(predict_noise)
        random = torch.Generator(device).manual_seed(2)
        table = torch.randn(_CLASSES + 1, *self.prompt_shape, generator=random, device=device)
        told = diffusers_predictor(schedule, _told)

        def call(network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            return told(network, x_t, t, table[condition])

        empty = torch.full((1,), _CLASSES, device=device)
        return replace(Predictors.all(guided(call, self.guidance, empty)), generator=call)


def _told(network: nn.Module, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
    """What a U-Net predicts that is told (N, L, D); XL's also a pooled text and six sizes."""
    more = {"text_embeds": prompt[:, 0, :1280], "time_ids": prompt[:, 1, :6]}
    output: Tensor = network(x_t, t, encoder_hidden_states=prompt, added_cond_kwargs=more).sample
    return output


_STABLE_DIFFUSION = {
    "alpha": 1.0, "diffusion.t_init": 625, "diffusion.t_min": 20, "diffusion.t_max": 980,
    "generator.lr": 1e-6, "generator.lambda_forget": 1.0,
    "pseudo_score.lr": 3e-6, "pseudo_score.lambda_forget": 1.0, "ema.decay": None,
}  # fmt: skip

# The tiny ones have what the large ones have: two levels, attention, dropout, conditions.
NETWORKS: dict[str, Network] = {
    "tiny": Network(
        partial(
            DDPMUNet, sample_size=8, channels=8, channel_mult=(1, 2), blocks_per_level=1,
            norm_num_groups=4,
        ),
        (2,), (3, 8, 8),
    ),
    "tiny_text": Network(
        partial(
            UNet2DConditionModel, sample_size=8, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=2 * ("DownBlock2D",), up_block_types=2 * ("UpBlock2D",),
            norm_num_groups=4, attention_head_dim=2, cross_attention_dim=16,
        ),
        (2,), (4, 8, 8), _STABLE_DIFFUSION, (77, 16),
    ),
    "demo": Network(
        lambda: ModelFolder.load(teacher_folder()).network,
        (8,), (4, 14, 14),
        {
            "generator.lr": 2e-4, "generator.lambda_forget": 1.0,
            "pseudo_score.lr": 2e-4, "pseudo_score.lambda_forget": 1.0, "ema.decay": 0.95,
        },
    ),
    # The U-Net of SA, SalUn, SFD and EraseDiff.
    "cifar10": Network(DDPMUNet, (128,), (3, 32, 32)),
    "stl10": Network(
        partial(DDPMUNet, sample_size=64, channel_mult=(1, 2, 2, 2, 4), attention_levels=(2,)),
        (64,), (3, 64, 64), {"pseudo_score.lr": 3e-5},
    ),
    # 859,520,964 parameters in 686 tensors: the U-Net of Stable Diffusion 1.5. 3.2 GiB in float32.
    "sd15": Network(
        partial(UNet2DConditionModel, cross_attention_dim=768, attention_head_dim=8),
        (1, 4), (4, 64, 64), _STABLE_DIFFUSION, (77, 768),
    ),
    # 2,567,463,684 in 1,680: the U-Net of the Stable Diffusion XL base model. 9.6 GiB in float32.
    "sdxl": Network(
        partial(
            UNet2DConditionModel, sample_size=128, block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", *2 * ("CrossAttnDownBlock2D",)),
            up_block_types=(*2 * ("CrossAttnUpBlock2D",), "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        (1,), (4, 128, 128), _STABLE_DIFFUSION, (77, 2048),
    ),
}  # fmt: skip
