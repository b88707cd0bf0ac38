"""Parameter shapes of real networks: what the benchmarks run on."""

from __future__ import annotations

import torch

__all__ = ["PRESETS", "shapes"]


def _ddpm_cifar10() -> dict[str, torch.Size]:
    # 35,751,939 parameters: the U-Net of google/ddpm-cifar10-32 with a class embedding.
    from diffusers import UNet2DModel

    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            norm_num_groups=32,
            attention_head_dim=None,
            dropout=0.1,
            num_class_embeds=11,
        )
    return {name: param.shape for name, param in unet.named_parameters()}


def _sd15() -> dict[str, torch.Size]:
    # 859,520,964 parameters: the U-Net of Stable Diffusion 1.5. 3.2 GiB in float32.
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    return {name: param.shape for name, param in unet.named_parameters()}


def _tiny() -> dict[str, torch.Size]:
    # A few shapes of each kind, 100,498 parameters: for tests and smoke runs.
    return {
        "conv.weight": torch.Size((64, 32, 3, 3)),
        "conv.bias": torch.Size((64,)),
        "linear.weight": torch.Size((512, 160)),
        "norm.weight": torch.Size((32,)),
        "scale": torch.Size((1,)),
        "odd": torch.Size((7, 7)),
    }


PRESETS = {"ddpm_cifar10": _ddpm_cifar10, "sd15": _sd15, "tiny": _tiny}


def shapes(preset: str) -> dict[str, torch.Size]:
    """Name -> shape of every parameter of a preset.

    Raises:
        KeyError: no such preset.
    """
    return PRESETS[preset]()
