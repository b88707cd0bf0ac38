"""What is stepped and ranked: parameters with gradients, masks, scores, and the bytes they cost.

The shapes are those of real networks. They are data (benchmarks/shapes), so that no network library
is needed to measure. The DDPMs are google/ddpm-cifar10-32 with a class embedding, and the same with
channel multipliers 1, 2, 2, 2, 4 for 64 x 64 images; a test holds the others to those of
networks.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pecker_fast.masks.mask import SaliencyMask

# "tiny" is a few shapes of each kind, 100,498 parameters: for tests and smoke runs.
PRESETS = ("tiny", "ddpm_cifar10", "ddpm_stl10", "sd15", "sdxl")
LINE_BYTES = 64
Params = dict[str, torch.nn.Parameter]
Masks = dict[str, Tensor]


def shapes(preset: str) -> dict[str, torch.Size]:
    """Name -> shape of every parameter of one of `PRESETS`, in the network's order."""
    file = Path(__file__).parent / "shapes" / f"{preset}.json"
    return {name: torch.Size(shape) for name, shape in json.loads(file.read_text()).items()}


@dataclass
class StepInput:
    """Parameters with gradients under one mask."""

    params: Params
    masks: Masks | None
    dtype: torch.dtype = torch.float32
    beta1: float = 0.9

    @property
    def options(self) -> dict[str, float | tuple[float, float]]:
        """Of every optimizer alike. The rate is high so that a wrong update shows in the gate."""
        return {"lr": 1e-3, "betas": (self.beta1, 0.999), "weight_decay": 0.1}

    def fresh_grads(self) -> None:
        """New gradient tensors with the same values, as every backward pass makes them."""
        for param in self.params.values():
            param.grad = param.grad.clone()

    def negate_grads(self) -> None:
        """New gradient tensors with the opposite values."""
        for param in self.params.values():
            param.grad = -param.grad


def make_input(
    preset: str,
    dtype: torch.dtype,
    mask: str,
    density: float,
    device: str,
    beta1: float = 0.9,
) -> StepInput:
    """Mask, parameters and gradients as a training step leaves them, on the device, from seeds.

    Mask "random" makes every entry salient with probability `density`, "heavy" is `heavy_mask`.
    """
    params, masks, named = {}, None, shapes(preset)
    if mask == "heavy":
        dense = heavy_mask(named, density, device).to_dense()
        masks = {name: salient.to(device) for name, salient in dense.items()}
    elif mask == "random":
        random = torch.Generator(device).manual_seed(1)
        draws = {n: torch.rand(s, generator=random, device=device) for n, s in named.items()}
        masks = {name: draw < density for name, draw in draws.items()}
    torch.manual_seed(0)
    for name, shape in named.items():
        weight = 0.02 * torch.randn(shape, device=device)
        params[name] = torch.nn.Parameter(weight.to(dtype))
        params[name].grad = torch.randn(shape, device=device).to(dtype)
    return StepInput(params, masks, dtype, beta1)


def heavy_mask(named_shapes: Mapping[str, torch.Size], density: float, device: str) -> SaliencyMask:
    """The most salient entries of heavy-tailed random scores, which look like real saliency."""
    return SaliencyMask.from_scores(random_scores(named_shapes, device), density)


def random_scores(
    named_shapes: Mapping[str, torch.Size], device: str, seed: int = 1
) -> dict[str, Tensor]:
    """Scores like |gradient|, normal with a log-normal scale (sigma 2) per row.

    The largest of them touch about as few cache lines as real saliency does.
    """
    generator = torch.Generator(device).manual_seed(seed)
    scores = {}
    for name, shape in named_shapes.items():
        score = torch.randn(shape, generator=generator, device=device).abs_()
        if len(shape) > 0:
            scale = torch.randn(shape[0], generator=generator, device=device)
            score *= scale.mul_(2.0).exp_().view(-1, *[1] * (len(shape) - 1))
        scores[name] = score
    return scores


# ---- what a step must move


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def touched_lines(made: StepInput) -> int:
    """How many 64-byte lines of the parameters hold a salient entry."""
    per_line = LINE_BYTES // made.dtype.itemsize
    if made.masks is None:
        return sum(math.ceil(param.numel() / per_line) for param in made.params.values())
    touched = []
    for mask in made.masks.values():
        flat = mask.flatten()
        padded = torch.nn.functional.pad(flat, (0, -flat.numel() % per_line))
        touched.append(padded.view(-1, per_line).any(dim=1).sum())
    return int(torch.stack(touched).sum())


def bytes_floor(made: StepInput) -> int:
    """What a step with compact state must move.

    Touched lines of the parameter (read and written) and of the gradient (read); for every salient
    entry its position (4 bytes, none without a mask) and each moment twice, 4 bytes each (one
    moment at beta1 = 0); under a mask the float32 master of a low-precision parameter, twice.
    """
    salient = sum(param.numel() for param in made.params.values())
    if made.masks is not None:
        salient = int(torch.stack([mask.sum() for mask in made.masks.values()]).sum())
    per_entry = 8 if made.beta1 == 0 else 16
    if made.masks is not None:
        per_entry += 4 + (8 if made.dtype.itemsize == 2 else 0)
    return 3 * LINE_BYTES * touched_lines(made) + per_entry * salient
