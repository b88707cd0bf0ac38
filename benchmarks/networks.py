"""The networks of whole training iterations: teachers with random weights, conditions, recipes.

Class-conditional presets draw labels. Text-to-image presets draw prompts out of a small table of
random embeddings: no text encoder runs, and none would in a run that caches its prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pecker_fast_demo import teacher_folder
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from pecker_fast.distill import ClassConditions, NoiseSchedule, Objective, PeckerConfig
from pecker_fast.distill.networks import Predictors, diffusers_predictor, guided, predict_noise
from pecker_fast.models import ModelFolder
from pecker_fast.models.architectures.base import Denoiser
from pecker_fast.models.architectures.dit import DiT
from pecker_fast.models.architectures.flux import Flux
from pecker_fast.models.architectures.sana import Sana
from pecker_fast.models.architectures.stable_diffusion import StableDiffusion
from pecker_fast.models.architectures.stable_diffusion_3 import StableDiffusion3
from pecker_fast.models.architectures.stable_diffusion_xl import StableDiffusionXL
from pecker_fast.models.ddpm import DDPMUNet

__all__ = ["NETWORKS", "Network", "Teacher"]

_CLASSES = 10
_TOKENS = 77  # of a prompt, in every Stable Diffusion


@dataclass(frozen=True)
class Network:
    """A network and the published recipe around it."""

    # The network, in float32 on the default device. The demo's is the shipped teacher; the others
    # have random weights.
    make: Callable[[], nn.Module]
    batch_sizes: tuple[int, ...]  # B, remain images and again forget images in an iteration
    sample_shape: tuple[int, int, int]  # (C, H, W) of what the network sees
    betas: str = "linear"  # "linear" or "scaled_linear", as diffusers calls them, or "flow"
    # Keys of `PeckerConfig` that both loops run with.
    settings: Mapping[str, Any] = field(default_factory=dict)
    # Scale of classifier-free guidance of teacher and pseudo-score. None: classes.
    guidance: float | None = None
    # What is known of a network of diffusers. None: it predicts noise as it is.
    family: Denoiser | None = None
    prompt_shape: tuple[int, ...] = ()  # of what it is told of one prompt
    published_precision: str = "fp32"  # of the loop as published: "fp32", or "autocast" (bf16)


def _of_diffusers(kind: str, **options: Any) -> nn.Module:
    import diffusers

    network: nn.Module = getattr(diffusers, kind)(**options)
    return network


_conditional_unet = partial(_of_diffusers, "UNet2DConditionModel")


_STABLE_DIFFUSION: dict[str, Any] = {
    "betas": "scaled_linear",
    "settings": {
        "alpha": 1.0, "diffusion.t_init": 625, "diffusion.t_min": 20, "diffusion.t_max": 980,
        "generator.lr": 1e-6, "generator.lambda_forget": 1.0,
        "pseudo_score.lr": 3e-6, "pseudo_score.lambda_forget": 1.0, "ema.decay": None,
    },
    "guidance": 4.5,
    "published_precision": "autocast",
    "family": StableDiffusion(),
}  # fmt: skip
_FLOW = {**_STABLE_DIFFUSION, "betas": "flow"}

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
            _conditional_unet, sample_size=8, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=2 * ("DownBlock2D",), up_block_types=2 * ("UpBlock2D",),
            norm_num_groups=4, attention_head_dim=2, cross_attention_dim=16,
        ),
        (2,), (4, 8, 8), prompt_shape=(_TOKENS, 16), **_STABLE_DIFFUSION,
    ),
    "demo": Network(
        lambda: ModelFolder.load(teacher_folder()).network,
        (8,), (4, 14, 14),
        settings={
            "generator.lr": 2e-4, "generator.lambda_forget": 1.0,
            "pseudo_score.lr": 2e-4, "pseudo_score.lambda_forget": 1.0, "ema.decay": 0.95,
        },
    ),
    # The U-Net of SA, SalUn, SFD and EraseDiff.
    "cifar10": Network(DDPMUNet, (128,), (3, 32, 32)),
    "stl10": Network(
        partial(DDPMUNet, sample_size=64, channel_mult=(1, 2, 2, 2, 4), attention_levels=(2,)),
        (64,), (3, 64, 64), settings={"pseudo_score.lr": 3e-5},
    ),
    # DiT-XL/2 of 256 pixels. In diffusers' form every block has an embedding of time and of 1,000
    # classes to itself. It predicts the variance as well.
    "dit_xl2": Network(
        partial(_of_diffusers, "DiTTransformer2DModel", out_channels=8), (1,), (4, 32, 32),
        family=DiT(),
    ),
    # 859,520,964 parameters in 686 tensors: the U-Net of Stable Diffusion 1.5. 3.2 GiB in float32.
    "sd15": Network(
        partial(_conditional_unet, cross_attention_dim=768, attention_head_dim=8),
        (1, 4), (4, 64, 64), prompt_shape=(_TOKENS, 768), **_STABLE_DIFFUSION,
    ),
    # 2,567,463,684 in 1,680: the U-Net of the Stable Diffusion XL base model. 9.6 GiB in float32.
    "sdxl": Network(
        partial(
            _conditional_unet, sample_size=128, block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", *2 * ("CrossAttnDownBlock2D",)),
            up_block_types=(*2 * ("CrossAttnUpBlock2D",), "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        (1,), (4, 128, 128), prompt_shape=(_TOKENS * 2048 + 1280 + 6,),
        **{**_STABLE_DIFFUSION, "family": StableDiffusionXL()},
    ),
    # Stable Diffusion 3.5 medium, and FLUX.1-dev, which has guidance built in.
    "sd35_medium": Network(
        partial(
            _of_diffusers, "SD3Transformer2DModel", num_layers=24, num_attention_heads=24,
            caption_projection_dim=1536, pos_embed_max_size=384, qk_norm="rms_norm",
            dual_attention_layers=tuple(range(13)),
        ),
        (1,), (16, 128, 128), prompt_shape=((_TOKENS + 256) * 4096 + 2048,),
        **{**_FLOW, "family": StableDiffusion3()},
    ),
    "flux": Network(
        partial(_of_diffusers, "FluxTransformer2DModel", guidance_embeds=True),
        (1,), (16, 128, 128), prompt_shape=(512 * 4096 + 768,),
        **{**_FLOW, "family": Flux(), "guidance": 1.0},
    ),
    # 1,604,462,752 in 396: SANA of 1024 pixels, whose latent images are of a 32nd of the side.
    "sana": Network(
        partial(_of_diffusers, "SanaTransformer2DModel"), (1,), (32, 32, 32),
        prompt_shape=(300 * (2304 + 1),), **{**_FLOW, "family": Sana()},
    ),
}  # fmt: skip


def _prompted(network: Network, schedule: NoiseSchedule, device: torch.device) -> Predictors:
    """How text-to-image networks are called: labels choose prompts out of a table.

    With guidance the network sees each image twice, as in every diffusers pipeline:
    `eps = eps_empty + scale (eps_prompt - eps_empty)`. The one-step generator is not guided.

    Args:
        network: which family's they are, and what its prompts look like.
        schedule: of its noise.
        device: where the table lives: a row per prompt, then the empty prompt's.
    """
    assert network.family is not None and network.guidance is not None
    random = torch.Generator(device).manual_seed(2)
    table = torch.randn(_CLASSES + 1, *network.prompt_shape, generator=random, device=device)
    kind = "flow_prediction" if schedule.flow else "epsilon"
    told = diffusers_predictor(schedule, network.family.call, kind)

    def call(network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return told(network, x_t, t, table[condition])

    empty = torch.full((1,), _CLASSES, device=device)
    return replace(Predictors.all(guided(call, network.guidance, empty)), generator=call)


class Teacher:
    """A preset's teacher on the CPU, from which every loop gets copies of its own.

    Attributes:
        network: what is published about it.
        conditions: the classes or prompts: the first is forgotten, the second takes its place.
    """

    def __init__(self, preset: str) -> None:
        """Build it."""
        torch.manual_seed(0)
        self.network = NETWORKS[preset]
        self.conditions = ClassConditions(0, 1, _CLASSES)
        self._unet = self.network.make()

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
        """Its noise schedule with the time constants of a configuration.

        In real numbers also where all others are fake: they are checked.
        """
        with _disable_current_modes():
            constants = config.diffusion.model_dump()
            if self.network.betas == "flow":
                return NoiseSchedule.rectified_flow(shift=3.0, **constants)
            if self.network.betas == "linear":
                betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
            else:
                betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
            return NoiseSchedule.from_betas(betas, **constants)

    def predictors(self, config: PeckerConfig, device: str | torch.device) -> Predictors:
        """What calls its networks."""
        if self.network.family is None:
            return Predictors.all(predict_noise)
        if self.network.guidance is None:
            told = diffusers_predictor(self.schedule(config), self.network.family.call)
            return Predictors.all(told)
        return _prompted(self.network, self.schedule(config), torch.device(device))

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
            predict=self.predictors(config, device),
        )
