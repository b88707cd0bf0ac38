"""What is stepped and ranked: parameters with gradients, masks, scores, and the bytes they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from presets import shapes
from torch import Tensor

__all__ = [
    "LINE_BYTES",
    "StepInput",
    "bytes_floor",
    "make_input",
    "make_masks",
    "nbytes",
    "one_tensor",
    "random_scores",
    "salient_entries",
    "touched_lines",
]

LINE_BYTES = 64
HEAVY_SIGMA = 2.0
_SAMPLE = 2**26  # scores from which the threshold of a heavy mask is found
Params = dict[str, torch.nn.Parameter]
Masks = dict[str, Tensor]


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
    """Mask, parameters and gradients as a training step leaves them, on the device, from seeds."""
    masks = make_masks(mask, shapes(preset), density, device)
    torch.manual_seed(0)
    params = {}
    for name, shape in shapes(preset).items():
        weight = 0.02 * torch.randn(shape, device=device)
        params[name] = torch.nn.Parameter(weight.to(dtype))
        params[name].grad = torch.randn(shape, device=device).to(dtype)
    return StepInput(params, masks, dtype, beta1)


def make_masks(
    kind: str, named_shapes: Mapping[str, torch.Size], density: float, device: str
) -> Masks | None:
    """Bool masks by name, or None for kind "none".

    "random" makes every entry salient with probability `density`. "heavy" takes the largest of
    `random_scores`: the threshold comes from all of them, in a large network from a sample (some
    64 M of them, so the density is met to four digits). Scores are made twice from one seed instead
    of being kept: they would take as much memory as the parameters.
    """
    if kind == "none":
        return None
    generator = torch.Generator(device).manual_seed(1)
    if kind == "random":
        return {
            name: torch.rand(shape, generator=generator, device=device) < density
            for name, shape in named_shapes.items()
        }
    stride = math.ceil(sum(shape.numel() for shape in named_shapes.values()) / _SAMPLE)
    sample = torch.cat(
        [
            random_scores(shape, kind, generator).flatten()[::stride]
            for shape in named_shapes.values()
        ]
    )
    count = max(1, round(density * sample.numel()))
    threshold = torch.topk(sample, count, sorted=False).values.min()
    generator.manual_seed(1)
    return {
        name: random_scores(shape, kind, generator) >= threshold
        for name, shape in named_shapes.items()
    }


def random_scores(shape: torch.Size, distribution: str, generator: torch.Generator) -> Tensor:
    """Scores like |gradient|: "normal", or "heavy", with a log-normal scale (sigma 2) per row.

    The latter touch about as few cache lines as real saliency does.
    """
    device = generator.device
    score = torch.randn(shape, generator=generator, device=device).abs_()
    if distribution == "heavy" and len(shape) > 0:
        scale = torch.randn(shape[0], generator=generator, device=device)
        score *= scale.mul_(HEAVY_SIGMA).exp_().view(-1, *[1] * (len(shape) - 1))
    return score


def one_tensor(made: StepInput) -> StepInput:
    """The same step in one tensor: as many salient entries in as many lines, one parameter.

    Under a mask every parameter keeps its alignment, by entries between that are not salient.
    """
    per_line = 1 if made.masks is None else LINE_BYTES // made.dtype.itemsize

    def join(tensors: list[Tensor]) -> Tensor:
        parts = []
        for tensor in tensors:
            flat = tensor.detach().flatten()
            parts.append(torch.nn.functional.pad(flat, (0, -flat.numel() % per_line)))
        return torch.cat(parts)

    param = torch.nn.Parameter(join(list(made.params.values())))
    param.grad = join([p.grad for p in made.params.values()])
    masks = None
    if made.masks is not None:
        masks = {"all": join([made.masks[name] for name in made.params])}
    return StepInput({"all": param}, masks, made.dtype, made.beta1)


# ---- what a step must move


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def salient_entries(made: StepInput) -> int:
    """The number of entries that change."""
    if made.masks is None:
        return sum(param.numel() for param in made.params.values())
    return int(torch.stack([mask.sum() for mask in made.masks.values()]).sum())


def touched_lines(made: StepInput) -> tuple[int, int]:
    """How many 64-byte lines of the parameters hold a salient entry, and how many there are."""
    per_line = LINE_BYTES // made.dtype.itemsize
    total = sum(math.ceil(param.numel() / per_line) for param in made.params.values())
    if made.masks is None:
        return total, total
    touched = []
    for mask in made.masks.values():
        flat = mask.flatten()
        padded = torch.nn.functional.pad(flat, (0, -flat.numel() % per_line))
        touched.append(padded.view(-1, per_line).any(dim=1).sum())
    return int(torch.stack(touched).sum()), total


def bytes_floor(made: StepInput) -> int:
    """What a step with compact state must move.

    Touched lines of the parameter (read and written) and of the gradient (read); for every salient
    entry its position (4 bytes, none without a mask) and each moment twice, 4 bytes each (one
    moment at beta1 = 0); under a mask the float32 master of a low-precision parameter, twice.
    """
    touched, _ = touched_lines(made)
    per_entry = 8 if made.beta1 == 0 else 16
    if made.masks is not None:
        per_entry += 4 + (8 if made.dtype.itemsize == 2 else 0)
    return 3 * LINE_BYTES * touched + per_entry * salient_entries(made)
