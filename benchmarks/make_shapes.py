"""Write benchmarks/shapes/*.json: the parameter shapes of the presets, from diffusers.

    python benchmarks/make_shapes.py            # needs diffusers; a benchmark does not

The networks are made on the meta device: no weights, no memory, no download.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["CONFIGS", "FOLDER", "shapes_of"]

FOLDER = Path(__file__).parent / "shapes"

# What google/ddpm-cifar10-32 and the published class-conditional DDPMs have in common.
_DDPM = {
    "layers_per_block": 2,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "attention_head_dim": None,
    "dropout": 0.1,
    "num_class_embeds": 11,  # ten classes and "no class"
}

# Preset -> the diffusers class and its arguments.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    # 35,751,939 parameters in 329 tensors: google/ddpm-cifar10-32 with a class embedding.
    "ddpm_cifar10": (
        "UNet2DModel",
        _DDPM
        | {
            "sample_size": 32,
            "block_out_channels": (128, 256, 256, 256),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", *2 * ("DownBlock2D",)),
            "up_block_types": (*2 * ("UpBlock2D",), "AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    # 78,706,435 in 391: channel multipliers 1, 2, 2, 2, 4 and attention at 16 x 16, for 64 x 64.
    "ddpm_stl10": (
        "UNet2DModel",
        _DDPM
        | {
            "sample_size": 64,
            "block_out_channels": (128, 256, 256, 256, 512),
            "down_block_types": (
                *2 * ("DownBlock2D",), "AttnDownBlock2D", *2 * ("DownBlock2D",),
            ),
            "up_block_types": (*2 * ("UpBlock2D",), "AttnUpBlock2D", *2 * ("UpBlock2D",)),
        },
    ),
    # 859,520,964 in 686: the U-Net of Stable Diffusion 1.5. 3.2 GiB in float32.
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


def shapes_of(preset: str) -> dict[str, list[int]]:
    """Name -> shape of every parameter, in the order of the network's `named_parameters`."""
    import diffusers

    class_name, arguments = CONFIGS[preset]
    with torch.device("meta"):
        unet = getattr(diffusers, class_name)(**arguments)
    return {name: list(param.shape) for name, param in unet.named_parameters()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for preset in CONFIGS:
        lines = (
            f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in shapes_of(preset).items()
        )
        (FOLDER / f"{preset}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
