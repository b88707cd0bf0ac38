"""The training iteration in its variants: as published, each change alone, all together.

Each is checked before it is timed: a few iterations from the same weights on the same random
numbers must give the published loop's losses and weight average, and every frozen entry must keep
its bits. For the check dropout is off (two halves of a batch draw it in another order), TF32 is
off, both terms weigh the same, and Adam's eps is 1: with the usual eps the first update is the sign
of the gradient, which says nothing about its size and flips where it is all but 0.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from inputs import heavy_mask
from networks import NETWORKS, Network
from published_loop import PublishedAdam, PublishedLoop
from rows import Row
from torch import Tensor, nn

from pecker_fast.distill import PeckerConfig, PeckerTrainer, load_config
from pecker_fast.distill.graph import WARM_UP
from pecker_fast.masks.verify import check_frozen
from pecker_fast.runs.learner import MakeOptimizer, masked_adamw

# What the published loop does, in the words of the trainer's configuration.
_PLAIN: dict[str, Any] = {
    "precision": "fp32",
    "accelerate": False,
    "graph": "off",
    "mask.apply": "generator",
    "mask.share_weights": False,
}
ONE_SET = {"mask.apply": "both", "mask.share_weights": True}


@dataclass(frozen=True)
class Variant:
    """One way to run the iteration."""

    name: str  # as the tables call it
    settings: Mapping[str, Any] = field(default_factory=dict)  # what differs from `_PLAIN`
    trainer: bool = True  # the trainer, which has both terms in one batch; else the published loop
    # MaskedAdamW; else clamp, `grad *= mask` and torch's default Adam.
    masked_optimizer: bool = True


PUBLISHED = Variant("as published", trainer=False, masked_optimizer=False)


def variants(device: str) -> list[Variant]:
    """Those that a device can run, the published loop first.

    Winograd's convolutions, which `accelerate` means on a CPU, are in fp32.
    """
    blocks, graph, fast = {"accelerate": True}, {"graph": "auto"}, {"accelerate": True}
    of_device = [Variant("trainer, Winograd convolutions", blocks)]
    if torch.device(device).type == "cuda":
        fast = {"precision": "bf16", **blocks, **graph}
        of_device = [Variant("trainer, fused blocks", blocks)]
        of_device.append(Variant("trainer, one CUDA graph", graph))
    return [
        PUBLISHED,
        Variant("remain and forget in one batch", masked_optimizer=False),
        Variant("masked optimizer", trainer=False),
        Variant("both of these: the trainer"),
        Variant("trainer, bf16 autocast", {"precision": "autocast"}),
        Variant("trainer, bf16 weights", {"precision": "bf16"}),
        *of_device,
        Variant("trainer, one set of weights", ONE_SET),
        Variant("trainer, recomputed for memory", {"recompute": True}),
        Variant("all, algorithm unchanged", fast),
        Variant("all, one set of weights", {**fast, **ONE_SET}),
    ]


# Losses, average. fp32: a few units of rounding in sums of some thousand terms; the generator's
# loss is made of p - s, which is smaller than either. bf16 rounds to 2^-9, and each iteration makes
# more of what the last left: up to 0.15 and 0.28 were seen on a CPU. A term or a pass that is
# missing, or the weights of another network, changes the average by its size.
TOLERANCES = {"fp32": (5e-5, 1e-5), "autocast": (0.3, 0.5), "bf16": (0.3, 0.5)}
# cuDNN may take Winograd or FFT for fp32 3x3 convolutions, whose errors are 1e-5 to 1e-4 (known of
# the algorithms, not measured here), and others for B images than for 2B.
TOLERANCES_ON_CUDA = TOLERANCES | {"fp32": (2e-4, 2e-4)}
_GATE_ITERATIONS = WARM_UP + 2  # the last two are replays where there is a CUDA graph
_GATE_SETTINGS: dict[str, Any] = {
    "iterations": _GATE_ITERATIONS,
    "optimizer.eps": 1.0,
    "generator.lambda_remain": 1.0,
    "generator.lambda_forget": 1.0,
    "pseudo_score.lambda_remain": 1.0,
    "pseudo_score.lambda_forget": 1.0,
    "ema.decay": 0.5,
    "logging.every": 1,
}


def configuration(
    network: Network, batch_size: int, density: float, settings: Mapping[str, Any]
) -> PeckerConfig:
    """The published recipe of a network, with some settings changed."""
    published = {**network.settings, "batch_size": batch_size, "mask.density": density}
    return load_config(None, {**published, **_PLAIN, **settings})


class _Result(NamedTuple):
    """What a few iterations of the check gave."""

    losses: Tensor  # (iterations, kinds), float64
    average: Tensor  # (parameters,), float32: by how much the weight average changed
    frozen_changed: int


class Problem:
    """A network, a batch size and a mask: what all variants of a table have in common."""

    def __init__(self, preset: str, batch_size: int, density: float, device: str) -> None:
        """Build the teacher and the mask; an iteration sees B remain and B forget images."""
        self.device, self.batch_size, self.density = device, batch_size, density
        self.network = NETWORKS[preset]
        torch.manual_seed(0)
        self.teacher = self.network.make()
        shapes = {name: param.shape for name, param in self.teacher.named_parameters()}
        self.mask = heavy_mask(shapes, density, device)
        # Steps that change the outputs of a network by about as much, however many weights it has:
        # larger ones make chaos out of rounding, smaller ones leave p - s to rounding.
        root = math.sqrt(sum(shape.numel() for shape in shapes.values()))
        self._gate = {**_GATE_SETTINGS, "pseudo_score.lr": 2 / root, "generator.lr": 3 / root}
        self._references: dict[str, _Result] = {}

    def start(self, variant: Variant) -> tuple[Callable[[], object], Callable[[], list[str]]]:
        """Make everything that the variant needs.

        Returns:
            One iteration, and what the trainer says about how it iterates.
        """
        run = self._make(variant, {"precision": self.precision(variant)}, dropout=True)
        return partial(next, iter(run.run())), lambda: getattr(run, "notes", [])

    def precision(self, variant: Variant) -> str:
        """The precision that a variant is timed in: as published, unless it changes that.

        It is checked in fp32 unless it changes that.
        """
        return variant.settings.get("precision", self.network.published_precision)

    def check(self, variant: Variant) -> tuple[bool, Row]:
        """Compare a few iterations with those of the published loop.

        Returns:
            Whether rounding explains how far they are apart (see `TOLERANCES`), and columns:
            loss_error, the largest difference of a loss over the largest loss of its kind;
            average_error, the norm of the difference of the average's change over the norm of the
            change; and frozen_changed, the frozen entries whose bits differ from their start.
        """
        masks = variant.settings.get("mask.apply", "generator")
        if masks not in self._references:
            self._references[masks] = self._result(PUBLISHED, {"mask.apply": masks})
        reference = self._references[masks]
        found = reference
        if variant != PUBLISHED:
            found = self._result(variant, {"mask.apply": masks})
        apart = (found.losses - reference.losses).abs().amax(0)
        loss_error = float((apart / reference.losses.abs().amax(0)).max())
        norm = reference.average.norm()
        average_error = float((found.average - reference.average).norm() / norm)
        precision = variant.settings.get("precision", "fp32")
        on_cuda = torch.device(self.device).type == "cuda"
        most_losses, most_average = (TOLERANCES_ON_CUDA if on_cuda else TOLERANCES)[precision]
        # (1 - scale) eps_empty + scale eps_prompt multiplies rounding by 2 scale - 1; the averages
        # of bf16 stay below what they are without.
        rounding = 2 * self.network.guidance - 1
        most_losses *= rounding
        most_average *= rounding if precision == "fp32" else 1
        match = loss_error <= most_losses and average_error <= most_average
        columns = {"loss_error": loss_error, "average_error": average_error}
        columns["frozen_changed"] = found.frozen_changed
        return match and found.frozen_changed == 0, columns

    def _result(self, variant: Variant, algorithm: Mapping[str, Any]) -> _Result:
        run = self._make(variant, {**self._gate, **algorithm}, dropout=False)
        names = ["generator", *["pseudo_score"] * (algorithm["mask.apply"] == "both")]
        # Where they share their weights, asking for one puts it in place.
        before = {name: _values(getattr(run, name)) for name in names}
        before["average"] = _values(self.teacher)
        with _exact_fp32():
            iterations = list(itertools.islice(run.run(), _GATE_ITERATIONS))
        lines = [getattr(each, "losses", each) for each in iterations]
        after = {name: _values(getattr(run, name)) for name in names}
        after["average"] = _values(run.ema_generator())
        salient = self.mask.to_dense()
        frozen_changed = sum(
            check_frozen(before[name], after[name], salient).frozen_changed for name in after
        )
        losses = [[line[name] for name in sorted(lines[0])] for line in lines]
        average = _flat(after["average"]) - _flat(before["average"])
        return _Result(torch.tensor(losses, dtype=torch.float64), average, frozen_changed)

    def _make(
        self, variant: Variant, settings: Mapping[str, Any], dropout: bool
    ) -> PeckerTrainer | PublishedLoop:
        """The trainer or the published loop, with the variant's optimizer."""
        settings = {**variant.settings, **settings}
        network, teacher = self.network, copy.deepcopy(self.teacher)
        for module in teacher.modules():
            if isinstance(module, nn.Dropout) and not dropout:
                module.p = 0.0
        config = configuration(network, self.batch_size, self.density, settings)
        objective = network.objective(teacher, network.schedule(config), config, self.device)
        make: MakeOptimizer = partial(PublishedAdam, options=config.optimizer)
        if variant.masked_optimizer:
            make = masked_adamw(config.optimizer)
        if variant.trainer:
            return PeckerTrainer(objective, mask=self.mask, make_optimizer=make)
        return PublishedLoop(objective, self.mask, make)


def _values(network: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach().to("cpu", copy=True) for name, param in network.named_parameters()}


def _flat(values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().float() for value in values.values()])


@contextmanager
def _exact_fp32() -> Iterator[None]:
    """TF32 off, whose 10 bits would hide a difference of 1e-5; cuDNN's choices are the same."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.backends.cudnn.flags(True, False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
