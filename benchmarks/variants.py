"""The training iteration in its variants: as published, each change alone, all together.

Each is checked before it is timed: a few iterations from the same weights on the same random
numbers must give the published loop's losses, updates and weight average, and every frozen entry
must keep its bits. For the check dropout is off (two halves of a batch draw it in another order),
TF32 is off, both terms weigh the same, and Adam's eps is 1: with the usual eps the first update is
the sign of the gradient, which says nothing about its size and flips where it is all but 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from inputs import heavy_mask
from networks import Teacher
from published_loop import Phases, PublishedAdam, PublishedLoop, Term
from rows import Row
from torch import Tensor, nn

from pecker_fast.distill import PeckerConfig, PeckerTrainer, load_config
from pecker_fast.distill.graph import WARM_UP
from pecker_fast.distill.objective import Objective
from pecker_fast.masks.verify import check_frozen
from pecker_fast.nn import winograd
from pecker_fast.runs.learner import MakeOptimizer, masked_adamw
from pecker_fast.runs.randomness import TRAINING, IterationRandom

__all__ = ["ONE_SET", "VARIANTS", "Problem", "Variant", "configuration"]

# What the published loop does, in the words of the trainer's configuration.
_PLAIN: dict[str, Any] = {
    "precision": "fp32",
    "accelerate": False,
    "graph": "off",
    "mask.apply": "generator",
    "mask.share_weights": False,
}
_FASTEST = {"precision": "bf16", "accelerate": True, "graph": "auto"}
_FASTEST_ON_CPU = {"precision": "fp32", "graph": "off"}  # Winograd's convolutions are fp32
ONE_SET = {"mask.apply": "both", "mask.share_weights": True}


@dataclass(frozen=True)
class Variant:
    """One way to run the iteration."""

    name: str  # as the tables call it
    trainer: bool = True  # the trainer, which has both terms in one batch; else the published loop
    # MaskedAdamW; else clamp, `grad *= mask` and torch's default Adam.
    masked_optimizer: bool = True
    # What differs from the plain configuration.
    settings: Mapping[str, Any] = field(default_factory=dict)
    # What differs from these settings on a CPU.
    on_cpu: Mapping[str, Any] = field(default_factory=dict)
    only: Literal["cpu", "cuda"] | None = None  # the type of device that it is for. None: any.


VARIANTS: tuple[Variant, ...] = (
    Variant("as published", trainer=False, masked_optimizer=False),
    Variant("remain and forget in one batch", masked_optimizer=False),
    Variant("masked optimizer", trainer=False),
    Variant("both of these: the trainer"),
    Variant("trainer, bf16 autocast", settings={"precision": "autocast"}),
    Variant("trainer, bf16 weights", settings={"precision": "bf16"}),
    Variant("trainer, fused blocks", settings={"accelerate": True}, only="cuda"),
    Variant("trainer, Winograd convolutions", settings={"accelerate": True}, only="cpu"),
    Variant("trainer, one CUDA graph", settings={"graph": "auto"}),
    Variant("trainer, one set of weights", settings=ONE_SET),
    Variant("trainer, recomputed for memory", settings={"recompute": True}),
    Variant("all, algorithm unchanged", settings=_FASTEST, on_cpu=_FASTEST_ON_CPU),
    Variant("all, one set of weights", settings={**_FASTEST, **ONE_SET}, on_cpu=_FASTEST_ON_CPU),
)


# Losses, updates. fp32: a few units of rounding in sums of some thousand terms; the generator's
# loss is made of p - s, which is smaller than either (1.1e-5 was seen). bf16 rounds to 2^-9, and
# each iteration makes more of what the last left: up to 0.15 and 0.28 were seen on a CPU. A term
# or a pass that is missing, or the weights of another network, changes the updates by their size.
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
    teacher: Teacher, batch_size: int, density: float, settings: Mapping[str, Any]
) -> PeckerConfig:
    """The published recipe of a network, with some settings changed."""
    published = {**teacher.network.settings, "batch_size": batch_size, "mask.density": density}
    return load_config(None, {**published, **_PLAIN, **settings})


class Problem:
    """A network, a batch size and a mask: what all variants of a table have in common."""

    def __init__(self, preset: str, batch_size: int, density: float, device: str) -> None:
        """Build the teacher and the mask; an iteration sees B remain and B forget images."""
        self.device, self.batch_size, self.density = device, batch_size, density
        self.teacher = Teacher(preset)
        self.mask = heavy_mask(self.teacher.shapes(), density, device)
        # Steps that change the outputs of a network by about as much, however many weights it has:
        # larger ones make chaos out of rounding, smaller ones leave p - s to rounding.
        root = math.sqrt(sum(shape.numel() for shape in self.teacher.shapes().values()))
        self._gate = {**_GATE_SETTINGS, "pseudo_score.lr": 2 / root, "generator.lr": 3 / root}
        self._references: dict[str, _Result] = {}

    def obstacle(self, variant: Variant) -> str | None:
        """Why a variant cannot run here, or None."""
        device, settings = torch.device(self.device).type, self.settings(variant)
        if variant.only not in (None, device):
            return f"it is for {variant.only} devices"
        if device == "cuda":
            return None
        if settings.get("accelerate") and (reason := winograd.unavailable()) is not None:
            return reason
        return "a CUDA graph needs CUDA" if settings.get("graph") == "auto" else None

    def settings(self, variant: Variant) -> dict[str, Any]:
        """What a variant changes here."""
        on_cpu = {} if torch.device(self.device).type == "cuda" else variant.on_cpu
        return {**variant.settings, **on_cpu}

    def start(self, variant: Variant) -> tuple[Callable[[], object], Callable[[], list[str]]]:
        """Make everything that the variant needs.

        Returns:
            One iteration, and what the trainer says about how it iterates.
        """
        run, _ = self._make(variant, {"precision": self.precision(variant)}, dropout=True)
        return partial(next, run.run()), lambda: getattr(run, "notes", [])

    def precision(self, variant: Variant) -> str:
        """The precision that a variant is timed in: as published, unless it changes that.

        It is checked in fp32 unless it changes that.
        """
        return self.settings(variant).get("precision", self.teacher.network.published_precision)

    # ---- the check

    def check(self, variant: Variant) -> tuple[bool, Row]:
        """Compare a few iterations with those of the published loop.

        Returns:
            Whether rounding explains how far they are apart (see `TOLERANCES`), and columns:
            loss_error, the largest difference of a loss over the largest loss of its kind;
            update_error, the norm of the difference of all weights' changes over the norm of the
            changes; and frozen_changed, the frozen entries whose bits differ from their start.
        """
        with _exact_fp32():
            reference = self._reference(variant)
            found = reference if variant == VARIANTS[0] else self._result(variant, {})
        scales = {
            name: max(abs(losses[name]) for losses in reference.losses)
            for name in reference.losses[0]
        }
        loss_error = max(
            abs(ours[name] - value) / scales[name]
            for ours, losses in zip(found.losses, reference.losses, strict=True)
            for name, value in losses.items()
        )
        update_error = max(found.difference(reference, network) for network in reference.changes)
        precision = self.settings(variant).get("precision", "fp32")  # the published loop: in fp32
        on_cuda = torch.device(self.device).type == "cuda"
        most_losses, most_updates = (TOLERANCES_ON_CUDA if on_cuda else TOLERANCES)[precision]
        guidance = self.teacher.network.guidance
        if guidance is not None:
            # (1 - scale) eps_empty + scale eps_prompt multiplies rounding by 2 scale - 1, 0.54 of a
            # loss of bf16 products; the updates of bf16 stay below what they are without.
            most_losses *= 2 * guidance - 1
            most_updates *= 2 * guidance - 1 if precision == "fp32" else 1
        match = loss_error <= most_losses and update_error <= most_updates
        columns = {"loss_error": loss_error, "update_error": update_error}
        columns["frozen_changed"] = found.frozen_changed
        return match and found.frozen_changed == 0, columns

    def _reference(self, variant: Variant) -> _Result:
        """The published loop, on what the variant changes of the algorithm."""
        masks = variant.settings.get("mask.apply", "generator")
        if masks not in self._references:
            self._references[masks] = self._result(VARIANTS[0], {"mask.apply": masks})
        return self._references[masks]

    def _result(self, variant: Variant, algorithm: Mapping[str, Any]) -> _Result:
        run, objective = self._make(variant, {**self._gate, **algorithm}, dropout=False)
        # Where they share their weights, asking for one puts it in place.
        views: dict[str, Callable[[], nn.Module]] = {
            "generator": lambda: run.generator,
            "pseudo_score": lambda: run.pseudo_score,
            "average": run.ema_generator,
        }
        before = {name: _values(view()) for name, view in views.items() if name != "average"}
        before["average"] = _values(self.teacher.copy())
        losses: list[Mapping[str, float]]
        if variant.trainer:
            losses = [dict(metrics.losses or {}) for metrics in run.run()]
        else:
            losses = list(run.run(_phases(objective, i) for i in range(_GATE_ITERATIONS)))
        after = {name: _values(view()) for name, view in views.items()}
        salient = self.mask.to_dense()
        frozen_changed = sum(
            check_frozen(before[name], after[name], salient).frozen_changed
            for name in after
            if name != "pseudo_score" or objective.config.mask.apply == "both"
        )
        changes, rounding = {}, {}
        for name, values in after.items():
            changes[name] = {
                key: value.float() - before[name][key].float() for key, value in values.items()
            }
            units = (value.float() * torch.finfo(value.dtype).eps for value in values.values())
            rounding[name] = math.sqrt(_GATE_ITERATIONS) * _norm(units, self.device)
        return _Result(losses, changes, rounding, frozen_changed, self.device)

    # ---- building

    def _make(
        self, variant: Variant, settings: Mapping[str, Any], dropout: bool
    ) -> tuple[PeckerTrainer | PublishedLoop, Objective]:
        """The trainer or the published loop, with the variant's optimizer."""
        settings = {**self.settings(variant), **settings}
        config = configuration(self.teacher, self.batch_size, self.density, settings)
        objective = self.teacher.objective(config, self.device, self.teacher.copy(dropout))
        make: MakeOptimizer = partial(PublishedAdam, options=config.optimizer)
        if variant.masked_optimizer:
            make = masked_adamw(config.optimizer)
        if variant.trainer:
            return PeckerTrainer(objective, mask=self.mask, make_optimizer=make), objective
        return PublishedLoop(objective, self.teacher, self.mask, make), objective


@dataclass(frozen=True)
class _Result:
    """What a few iterations of the check gave."""

    losses: list[Mapping[str, float]]
    changes: dict[str, dict[str, Tensor]]  # network -> parameter -> float32 on the CPU
    # network -> norm of a unit in the last place of every weight, once a step; roundings of several
    # steps are independent and add up as their root
    rounding: dict[str, float]
    frozen_changed: int
    device: str  # where norms are computed

    def difference(self, reference: _Result, network: str) -> float:
        """How far the changes are from the reference's, relative, beyond the weights' rounding.

        Weights in bfloat16 are rounded by more than they change, so they tell nothing: the average,
        which follows the masters, and the losses of the later iterations do.
        """
        if self.rounding[network] > reference.rounding[network] * 10:
            return 0.0
        expected = reference.changes[network]
        differences = (self.changes[network][name] - value for name, value in expected.items())
        norm = _norm(differences, self.device)
        return max(0.0, norm - self.rounding[network]) / _norm(expected.values(), self.device)


def _phases(objective: Objective, iteration: int) -> Phases:
    """The random numbers of the trainer's iteration, cut into terms."""
    config, size = objective.config, objective.config.batch_size
    random = IterationRandom(config.seed, iteration, objective.device, TRAINING)
    labels = objective.conditions.draw(size, random)

    def phase() -> tuple[Term, Term]:
        draws = objective.draw(random, 2 * size)
        parts = (draws.noise, draws.e, draws.t, labels.student, labels.teacher)
        halves = slice(0, size), slice(size, 2 * size)
        remain, forget = (Term(*(part[rows] for part in parts)) for rows in halves)
        return remain, forget

    return phase(), phase()


def _values(network: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach().to("cpu", copy=True) for name, param in network.named_parameters()}


def _norm(tensors: Iterable[Tensor], device: str) -> float:
    """The 2-norm of all tensors together, on a device: a CPU is slow with large networks."""
    return math.sqrt(sum(float(t.to(device).double().square().sum()) for t in tensors))


@contextmanager
def _exact_fp32() -> Iterator[None]:
    """TF32 off, whose 10 bits would hide a difference of 1e-5; cuDNN's choices are the same."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = False, False, True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before
