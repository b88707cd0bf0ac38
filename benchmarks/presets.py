"""Parameter shapes of real networks: what the benchmarks run on.

They are data (benchmarks/shapes), so that no network library is needed to measure. The DDPMs are
google/ddpm-cifar10-32 with a class embedding, and the same with channel multipliers 1, 2, 2, 2, 4
for 64 x 64 images; a test holds the others to the networks of `networks.CONFIGS`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

__all__ = ["PRESETS", "shapes"]

_FOLDER = Path(__file__).parent / "shapes"

# A few shapes of each kind, 100,498 parameters: for tests and smoke runs.
_TINY = {
    "conv.weight": torch.Size((64, 32, 3, 3)),
    "conv.bias": torch.Size((64,)),
    "linear.weight": torch.Size((512, 160)),
    "norm.weight": torch.Size((32,)),
    "scale": torch.Size((1,)),
    "odd": torch.Size((7, 7)),
}

PRESETS = ("tiny", "ddpm_cifar10", "ddpm_stl10", "sd15", "sdxl")


def shapes(preset: str) -> dict[str, torch.Size]:
    """Name -> shape of every parameter of a preset, in the network's order.

    Raises:
        KeyError: no such preset.
    """
    if preset not in PRESETS:
        raise KeyError(f"no preset {preset!r}: expected one of {', '.join(PRESETS)}")
    if preset == "tiny":
        return dict(_TINY)
    saved = json.loads((_FOLDER / f"{preset}.json").read_text(encoding="utf-8"))
    return {name: torch.Size(shape) for name, shape in saved.items()}
