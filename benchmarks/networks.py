"""The networks of whole training iterations: teachers with random weights, conditions, masks.

Class-conditional presets draw labels. Text-to-image presets draw prompts out of a small table of
random embeddings: no text encoder runs, and none would in a run that caches its prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from inputs import random_scores
from torch import Tensor, nn

from pecker_fast.data import teacher_folder
from pecker_fast.distill import ClassConditions, NoiseSchedule, Objective, PeckerConfig
from pecker_fast.distill.networks import Predictors, predict_noise
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet

__all__ = ["CONFIGS", "NETWORKS", "Network", "Prompts", "Teacher", "make_mask", "unet"]

_CLASSES = 10
_TOKENS = 77  # of a prompt, in every Stable Diffusion

# The smallest U-Nets that have what the large ones have: two levels, attention in the middle,
# dropout, conditions.
_TINY = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": 2 * ("DownBlock2D",),
    "up_block_types": 2 * ("UpBlock2D",),
    "norm_num_groups": 4,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "UNet2DModel",
        _TINY | {"attention_head_dim": None, "dropout": 0.1, "num_class_embeds": _CLASSES + 1},
    ),
    "tiny_text": (
        "UNet2DConditionModel",
        _TINY | {"attention_head_dim": 2, "cross_attention_dim": 16},
    ),
    # 859,520,964 parameters in 686 tensors: the U-Net of Stable Diffusion 1.5. 3.2 GiB in float32.
    "sd15": ("UNet2DConditionModel", {"cross_attention_dim": 768, "attention_head_dim": 8}),
    # 2,567,463,684 in 1,680: the U-Net of the Stable Diffusion XL base model. 9.6 GiB in float32.
    "sdxl": (
        "UNet2DConditionModel",
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", *2 * ("CrossAttnDownBlock2D",)),
            "up_block_types": (*2 * ("CrossAttnUpBlock2D",), "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
}  # fmt: skip

# The U-Net of SA, SalUn, SFD and EraseDiff.
_PUBLISHED = {
    "cifar10": DDPMUNet,
    "stl10": partial(
        DDPMUNet, sample_size=64, channel_mult=(1, 2, 2, 2, 4), attention_levels=(2,)
    ),
    "tiny_ddpm": partial(
        DDPMUNet, sample_size=8, channels=8, channel_mult=(1, 2), blocks_per_level=1,
        norm_num_groups=4,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network and the published recipe around it.

    Attributes:
        batch_sizes: B, remain images and again forget images in an iteration.
        sample_shape: (C, H, W) of what the network sees.
        betas: "linear" or "scaled_linear", as diffusers calls them.
        settings: keys of `PeckerConfig` that both loops run with.
        guidance: scale of classifier-free guidance of teacher and pseudo-score. None: classes.
        published_precision: of the loop as published: "fp32", or "autocast" (bf16).
    """

    batch_sizes: tuple[int, ...]
    sample_shape: tuple[int, int, int]
    betas: str = "linear"
    settings: Mapping[str, Any] = field(default_factory=dict)
    guidance: float | None = None
    published_precision: str = "fp32"


_STABLE_DIFFUSION: dict[str, Any] = {
    "betas": "scaled_linear",
    "settings": {
        "alpha": 1.0,
        "diffusion.t_init": 625,
        "diffusion.t_min": 20,
        "diffusion.t_max": 980,
        "generator.lr": 1e-6,
        "generator.lambda_forget": 1.0,
        "pseudo_score.lr": 3e-6,
        "pseudo_score.lambda_forget": 1.0,
        "ema.decay": None,
    },
    "guidance": 4.5,
    "published_precision": "autocast",
}
NETWORKS: dict[str, Network] = {
    "tiny": Network((2,), (3, 8, 8)),
    "tiny_ddpm": Network((2,), (3, 8, 8)),
    "tiny_text": Network((2,), (4, 8, 8), **_STABLE_DIFFUSION),
    "demo": Network(
        (8,),
        (4, 14, 14),
        settings={
            "generator.lr": 2e-4,
            "generator.lambda_forget": 1.0,
            "pseudo_score.lr": 2e-4,
            "pseudo_score.lambda_forget": 1.0,
            "ema.decay": 0.95,
        },
    ),
    "cifar10": Network((128,), (3, 32, 32)),
    "stl10": Network((64,), (3, 64, 64), settings={"pseudo_score.lr": 3e-5}),
    "sd15": Network((1, 4), (4, 64, 64), **_STABLE_DIFFUSION),
    "sdxl": Network((1,), (4, 128, 128), **_STABLE_DIFFUSION),
}


def unet(preset: str) -> nn.Module:
    """The network of a preset, in float32 on the default device.

    The demo's is the shipped teacher; the others have random weights.
    """
    import diffusers

    if preset == "demo":
        return ModelFolder.load(teacher_folder()).unet
    if preset in _PUBLISHED:
        return _PUBLISHED[preset]()
    class_name, arguments = CONFIGS[preset]
    return getattr(diffusers, class_name)(**arguments)


class Prompts:
    """Calls a text-to-image U-Net: labels choose prompts out of a table, with or without guidance.

    With guidance the network sees each image twice, as in every diffusers pipeline:
    `eps = eps_empty + scale (eps_prompt - eps_empty)`.
    """

    def __init__(self, network: nn.Module, scale: float, device: torch.device) -> None:
        """Draw the embeddings: one per prompt, then the empty prompt's.

        Args:
            network: any of the U-Nets that will be called; only its configuration is read.
            scale: of the guidance.
            device: where the table lives.
        """
        config = network.config
        random = torch.Generator(device).manual_seed(2)
        rows = _CLASSES + 1

        def table(*shape: int) -> Tensor:
            return torch.randn(rows, *shape, generator=random, device=device)

        self._scale = scale
        self._embeddings = table(_TOKENS, config.cross_attention_dim)
        self._added: dict[str, Tensor] = {}
        if config.addition_embed_type == "text_time":  # Stable Diffusion XL: pooled text and sizes
            pooled = config.projection_class_embeddings_input_dim
            pooled -= 6 * config.addition_time_embed_dim
            self._added = {"text_embeds": table(pooled), "time_ids": table(6)}

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The predicted noise, shaped and typed like `x_t` (N, C, H, W)."""
        empty = torch.full_like(condition, _CLASSES)
        twice = (torch.cat([part, part]) for part in (x_t, t))
        without, prompted = self._call(network, *twice, torch.cat([empty, condition])).chunk(2)
        return without + self._scale * (prompted - without)

    def without_guidance(
        self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor
    ) -> Tensor:
        """The same for the one-step generator, which is not guided."""
        return self._call(network, x_t, t, condition)

    def _call(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        dtype = next(network.parameters()).dtype
        added = {name: table[condition].to(dtype) for name, table in self._added.items()}
        output = network(
            x_t.to(dtype), t, self._embeddings[condition].to(dtype), added_cond_kwargs=added
        )
        return output.sample.to(x_t.dtype)


class Teacher:
    """A preset's teacher on the CPU, from which every loop gets copies of its own.

    Attributes:
        preset: its name.
        network: what is published about it.
        conditions: the classes or prompts: the first is forgotten, the second takes its place.
    """

    def __init__(self, preset: str, seed: int = 0) -> None:
        """Build it."""
        torch.manual_seed(seed)
        self.preset = preset
        self._unet = unet(preset)
        self.network = NETWORKS[preset]
        self.conditions = ClassConditions(0, 1, _CLASSES)

    def copy(self, dropout: bool = True) -> nn.Module:
        """The network with its weights, on the CPU; `dropout=False` switches all dropout off."""
        network = copy.deepcopy(self._unet)
        if not dropout:
            for module in network.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        return network

    def parameters(self) -> Iterator[nn.Parameter]:
        """The network's own, from which copies are made."""
        return self._unet.parameters()

    def shapes(self) -> dict[str, torch.Size]:
        """Name -> shape of every parameter."""
        return {name: param.shape for name, param in self._unet.named_parameters()}

    def schedule(self, config: PeckerConfig) -> NoiseSchedule:
        """Its noise schedule with the time constants of a configuration."""
        if self.network.betas == "linear":
            betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        else:
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        return NoiseSchedule.from_betas(betas, **config.diffusion.model_dump())

    def predictors(self, device: str) -> Predictors:
        """What calls its networks; with guidance teacher and pseudo-score have it everywhere."""
        if self.network.guidance is None:
            return Predictors.all(predict_noise)
        prompts = Prompts(self._unet, self.network.guidance, torch.device(device))
        everywhere = Predictors.all(prompts)
        return replace(everywhere, generator=prompts.without_guidance)

    def objective(
        self, config: PeckerConfig, device: str, network: nn.Module | None = None
    ) -> Objective:
        """The trainer's objective on a device, around a network; None: around a copy of its own."""
        return Objective(
            self.copy() if network is None else network,
            self.schedule(config),
            self.conditions,
            config,
            self.network.sample_shape,
            device=torch.device(device),
            predict=self.predictors(device),
        )


def make_mask(shapes: Mapping[str, torch.Size], density: float, device: str) -> SaliencyMask:
    """The most salient entries of heavy-tailed random scores, which look like real saliency."""
    random = torch.Generator(device).manual_seed(1)
    scores = {name: random_scores(shape, "heavy", random) for name, shape in shapes.items()}
    return SaliencyMask.from_scores(scores, density)
