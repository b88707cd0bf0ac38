"""Checkpoints as SA, SalUn, SFD and EraseDiff lay them out, of a small network."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from pecker_fast.models.ddpm import DDPMUNet

Weights = dict[str, Tensor]
SIZES = {"num_classes": 3, "channels": 32, "channel_mult": (1, 2), "blocks_per_level": 1}


def weights(seed: int, prefix: str = "", **sizes: Any) -> Weights:
    torch.manual_seed(seed)
    network = DDPMUNet(**(SIZES | {"sample_size": 32} | sizes))
    return OrderedDict({prefix + name: value for name, value in network.state_dict().items()})


def adam(network: Weights) -> dict[str, Any]:
    """The state dict of `torch.optim.Adam` over some parameters."""
    params = [torch.nn.Parameter(value.clone()) for value in list(network.values())[:3]]
    optimizer = torch.optim.Adam(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer.state_dict()


PSI, MODEL, EMA = weights(1), weights(2), weights(3)
WRAPPED = weights(2, "module.")
TRAINED = {"ema": EMA, "model": MODEL}
DISTILLED = {"ema": EMA, "generator": MODEL, "pseudo-score": PSI}
# What torch.save was given, which slots that is, and the step.
LAYOUTS: dict[str, tuple[Any, dict[str, Weights], int | None]] = {
    "trained": ([MODEL, adam(MODEL), 799_999, EMA], TRAINED, 799_999),
    "under DataParallel": ([WRAPPED, adam(MODEL), 1, EMA], TRAINED, 1),
    "wrapped twice": ([weights(2, "_orig_mod.module."), adam(MODEL), 1], {"model": MODEL}, 1),
    "no EMA": ([MODEL, adam(MODEL), 7], {"model": MODEL}, 7),
    "with an epoch": ([MODEL, adam(MODEL), 3, 900, EMA], TRAINED, 900),
    "distilled": ([PSI, adam(PSI), MODEL, adam(MODEL), 49_999, EMA], DISTILLED, 49_999),
    "distilled, no EMA": (
        [PSI, adam(PSI), WRAPPED, adam(MODEL), 5],
        {"generator": MODEL, "pseudo-score": PSI},
        5,
    ),
    "distilled, early": (
        [None, None, MODEL, None, 10, EMA],
        {"ema": EMA, "generator": MODEL},
        10,
    ),
    "weights alone": (MODEL, {"model": MODEL}, None),
    "by name": ({"model": WRAPPED, "optimizer": adam(MODEL), "step": 2, "ema": EMA}, TRAINED, 2),
    "EMA by name": ({"ema_model": EMA, "epoch": 2}, {"ema": EMA}, None),
}


def assert_same(found: Any, expected: Weights) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
