"""One iteration whose every number is made by a formula, the same on every machine.

What the published code makes of it is in published_figures.json (`make_published_figures.py`); what
this package makes of it is compared with that (`test_published_figures.py`).
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

SIZES: dict[str, dict[str, Any]] = {
    "narrow": {
        "sample_size": 16,
        "channels": 32,
        "channel_mult": (2, 3),  # groups of one channel would undo what the embedding adds
        "blocks_per_level": 1,
    },
    "cifar10": {
        "sample_size": 32,
        "channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "blocks_per_level": 2,
    },
}
"""Both for 10 classes, with attention at half the resolution."""

FORGET, OVERRIDE = 0, 1
REMAIN = (3, 9)
"""Labels of the two images of the remain term; the forget term has two as well."""

TIMES = {
    ("pseudo_score", "remain"): (38, 300),
    ("pseudo_score", "forget"): (150, 711),
    ("generator", "remain"): (55, 640),
    ("generator", "forget"): (290, 500),
}

RUNS: dict[str, dict[str, Any]] = {
    "as published": {},
    "forgetting alone": {"lambda_remain": 0.0, "lambda_forget": 1.0},
    "alpha 1": {"alpha": 1.0},
}
"""Differences from the published configuration; alpha concerns the generator's loss only."""

Shapes = Mapping[str, Iterable[int]]


class Recorder(torch.optim.Optimizer):
    """Keeps the gradients of a step, and then moves the parameters to given values.

    A step of Adam would turn a gradient's last bits into whole learning rates.
    """

    def __init__(self, params: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> None:
        super().__init__([{"params": list(params.values())}], {"lr": 0.0})
        self.names, self.moved = list(params), moved
        self.gradients: dict[str, Tensor] = {}

    def step(self, closure: None = None) -> None:
        params = self.param_groups[0]["params"]
        for name, param in zip(self.names, params, strict=True):
            self.gradients[name] = param.grad.detach().clone()
            param.data.copy_(self.moved[name])


def numbers(name: str, shape: Iterable[int]) -> Tensor:
    """float32 in [-1, 1), evenly spread; `name` tells one tensor from another."""
    size = torch.Size(shape)
    x = torch.arange(size.numel()).mul_(0x9E3779B1).add_(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # mixes 32 bits well
        x.bitwise_and_(0xFFFFFFFF)
        x.bitwise_xor_(x >> shift).mul_(factor)
    x.bitwise_and_(0xFFFFFFFF)
    x.bitwise_xor_(x >> 16)
    return x.double().mul_(2.0**-31).sub_(1).float().view(size)


def noise(name: str, size: str, count: int = 2) -> Tensor:
    """(count, 3, H, W) for the network of a size, close to normal: the sum of four."""
    side = SIZES[size]["sample_size"]
    parts = [numbers(f"{name} {part}", (count, 3, side, side)) for part in range(4)]
    return torch.stack(parts).sum(0) * 0.75**0.5


def weights(network: str, shapes: Shapes) -> dict[str, Tensor]:
    """Of the size that keeps activations of order one, biases and norms included."""
    made = {}
    for name, shape in shapes.items():
        values = numbers(f"{network}.{name}", shape)
        if ".norm" in name or name.startswith("norm"):
            values.mul_(0.2).add_(name.endswith("weight"))
        elif name.endswith("bias"):
            values.mul_(0.1)
        elif "classes_emb" in name:  # as normal numbers would be
            values.mul_(3**0.5)
        else:
            values.mul_((3 / values[0].numel()) ** 0.5)
        made[name] = values
    return made


def checkpoint(shapes: Shapes) -> list[Any]:
    """As the published code writes it in a distillation; teacher and start of psi are the first."""
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    wrapped = {f"module.{name}": value for name, value in weights("psi", shapes).items()}
    return [
        wrapped, optimizer, weights("theta", shapes), optimizer, 49_999, weights("ema", shapes),
    ]  # fmt: skip


def moved(shapes: Shapes) -> dict[str, Tensor]:
    """What the pseudo-score network is after its step."""
    return weights("moved", shapes)


def layout(shapes: Shapes) -> list[int]:
    """Tensors, parameters and a checksum of all names and shapes, in order."""
    listed = [(name, list(shape)) for name, shape in shapes.items()]
    sizes = [torch.Size(shape).numel() for _, shape in listed]
    return [len(sizes), sum(sizes), zlib.crc32(repr(listed).encode())]


def summary(name: str, tensor: Tensor) -> list[float]:
    """Its norm, and its product with a pattern: two numbers that small errors change by little."""
    tensor = tensor.detach().double()
    pattern = numbers(f"pattern {name}", tensor.shape).double()
    return [float(f"{value:.8g}") for value in (tensor.norm(), (tensor * pattern).sum())]


def layer_summaries(gradients: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """A `summary` of each layer's gradients, all its parameters as one.

    As one, since the gradient of an attention's key bias is 0 but for rounding.
    """
    layers: dict[str, list[tuple[str, Tensor]]] = {}
    for name, gradient in gradients.items():
        layer = name.removesuffix(".weight").removesuffix(".bias")
        layers.setdefault(layer, []).append((name, gradient))
    found = {}
    for layer, parts in layers.items():
        summaries = [summary(name, gradient) for name, gradient in parts]
        norm = sum(square**2 for square, _ in summaries) ** 0.5
        found[layer] = [float(f"{norm:.8g}"), float(f"{sum(p for _, p in summaries):.8g}")]
    return found
