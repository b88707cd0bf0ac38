"""One erasure from model to report: mask, distillation, model folder, figures, pictures.

`pecker-fast erase` and `pecker-fast demo` are this with different defaults. Everything goes into
one run directory; the same call on the same directory resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import click
import torch
from torch import nn

from pecker_fast import backends
from pecker_fast.cli.erasure_pictures import draw_pictures
from pecker_fast.cli.proof import prove_frozen
from pecker_fast.cli.run_files import (
    CURVE_NAME,
    FROZEN_NAME,
    MODEL_NAME,
    REPORT_NAMES,
    Clock,
    run_directory,
    save_folder,
)
from pecker_fast.cli.start_networks import StartNetwork
from pecker_fast.cli.stopping import saving_at_interrupt
from pecker_fast.distill.conditions import ClassConditions
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.curve import Curve
from pecker_fast.evaluate.report import ErasureReport
from pecker_fast.evaluate.run_judge import Judge
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.files import write_text
from pecker_fast.machine import machine_facts, versions
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FrozenCheck
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.models import ModelFolder
from pecker_fast.runs.checkpoint import RunDirectory
from pecker_fast.runs.metrics import Metrics
from pecker_fast.runs.stopwatch import Stopwatch

__all__ = ["START_NAME", "Erasure", "carry_out", "erase_class"]

START_NAME = "start.json"
"""In a run directory: how the run began, which later starts of it do not see. `start`: the networks
that it was given; `mask_seconds`: what finding its mask took."""


def erase_class(
    model: ModelFolder,
    config: PeckerConfig,
    out: Path,
    device: torch.device,
    *,
    force: bool = False,
    mask: SaliencyMask | None = None,
    judge: Judge | None = None,
    started: float | None = None,
    ranks: Ranks | None = None,
    generator: StartNetwork | None = None,
    pseudo_score: StartNetwork | None = None,
) -> tuple[FrozenCheck, ErasureReport | None]:
    """Erase `config.forget` from `model` into the run directory `out`.

    Args:
        model: the teacher.
        config: the run.
        out: where everything goes; the run that it holds is taken up.
        device: where to work.
        force: delete the run that `out` holds instead.
        mask: instead of the one that `config.mask` describes.
        judge: None for no evaluation and no report.
        started: `time.monotonic()` at the start of the command (None: now), for `wall_s`.
        ranks: the processes that share the run, all of which make this call. None: this one.
        generator: where the one-step generator starts. None: the teacher.
        pseudo_score: where the pseudo-score network starts. None: the teacher.

    Returns:
        The proof, and the report: None without a judge and on all processes but the first.
    """
    ranks = ranks or Ranks()
    # What is wrong with classes, time constants, backend or mask comes out before any writing.
    objective = Objective.from_model(model, config, device)
    conditions = objective.conditions
    assert isinstance(conditions, ClassConditions)  # a model folder's are
    if conditions.forget is None and judge is not None:
        raise PeckerError(
            "erase: nothing is forgotten (forget is null), so there is no report to write; leave "
            "out --classifier and use `pecker-fast evaluate`"
        )

    def start(directory: RunDirectory | None) -> PeckerTrainer:
        return PeckerTrainer(
            objective,
            generator=None if generator is None else generator.network,
            pseudo_score=None if pseudo_score is None else pseudo_score.network,
            mask=mask,
            run_directory=directory,
            progress=True,
            ranks=ranks,
        )

    given = {"generator": generator, "pseudo_score": pseudo_score}
    erasure = Erasure(
        model=model,
        config=config,
        forget=conditions.forget,
        override=conditions.override,
        sampler=Sampler(1, config.seed),
        start=start,
        finish=lambda trainer: _finish(trainer, model),
        starts={role: network.facts for role, network in given.items() if network is not None},
    )
    return carry_out(
        erasure, out, device, force=force, mask=mask, judge=judge, started=started, ranks=ranks
    )


class Trainer(Protocol):
    """What `carry_out` asks of a trainer."""

    iteration: int
    stopwatch: Stopwatch
    mask: SaliencyMask

    @property
    def notes(self) -> Sequence[str]:
        """How iterations are run, in lines to show."""

    def run(self) -> Iterator[Metrics]:
        """Train to the end, one iteration per item."""

    def save(self) -> None:
        """Write a checkpoint, between two iterations."""

    def verify_frozen(self, network: nn.Module | None = None) -> FrozenCheck:
        """Compare a network with the start, bit by bit."""


T = TypeVar("T", bound=Trainer)


@dataclass(frozen=True, kw_only=True)
class Erasure(Generic[T]):
    """What a distillation and a baseline differ in.

    Attributes:
        model: the original.
        config: the run.
        forget: index of the class to forget, or None.
        override: index of the class in its place, or None.
        sampler: how the erased model draws images.
        start: makes the trainer, which takes up what the run directory holds. The directory is
            None on all processes but the first.
        finish: makes the erased model as it is now.
        images: the real images that it is trained on, in words, or None.
        starts: by role, where the networks come from that start elsewhere than at the original.
    """

    model: ModelFolder
    config: PeckerConfig | BaselineConfig
    forget: int | None
    override: int | None
    sampler: Sampler
    start: Callable[[RunDirectory | None], T]
    finish: Callable[[T], ModelFolder]
    images: str | None = None
    starts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def carry_out(
    erasure: Erasure[T],
    out: Path,
    device: torch.device,
    *,
    force: bool,
    mask: SaliencyMask | None,
    judge: Judge | None,
    started: float | None,
    ranks: Ranks,
) -> tuple[FrozenCheck, ErasureReport | None]:
    """Train, save, judge and report.

    Args:
        erasure: what is done.
        out: where everything goes; the run that it holds is taken up.
        device: where to work.
        force: delete the run that `out` holds instead.
        mask: the one that was given instead of one that is found.
        judge: None for no evaluation and no report.
        started: `time.monotonic()` at the start of the command (None: now), for `wall_s`.
        ranks: the processes that share the run, all of which make this call.

    Returns:
        The proof, and the report: None without a judge and on all processes but the first.
    """
    clock = Clock(started)
    model, config, forget = erasure.model, erasure.config, erasure.forget
    backend = backends.name_of(backends.select(config.optimizer.backend, device))
    if mask is not None:
        mask.check(dict(model.unet.named_parameters()))
    with run_directory(out, force, ranks) as directory:
        is_new = directory is not None and not directory.iterations()
        with clock.stage("mask"):
            trainer = erasure.start(directory)
        searched = mask is None and config.mask.kind == "saliency"
        took = clock.stages["mask"] if searched else None
        ranks.first(lambda: _write_start(out, erasure.starts, took) if is_new else None)
        click.echo("; ".join(trainer.notes), err=True)
        resumed_at = trainer.iteration
        if resumed_at:
            click.echo(f"resuming at iteration {resumed_at} of {config.iterations}", err=True)
        if ranks.is_first:
            # Those of an earlier state must not stand beside a new one.
            for name in (FROZEN_NAME, *REPORT_NAMES):
                (out / name).unlink(missing_ok=True)
        with clock.stage("erase"):
            curve = None
            if judge is not None and forget is not None:
                span = (trainer.iteration, config.iterations)
                sampler = erasure.sampler
                curve = Curve(out / CURVE_NAME, judge, model, forget, sampler, span, ranks)
            train(trainer, curve, lambda: erasure.finish(trainer), ranks)
        with clock.stage("save"):
            training = {
                "seconds": round(trainer.stopwatch.seconds, 2),
                "processes": ranks.size,
                "machine": machine_facts(device),
                "versions": versions(),
            }
            if (seconds := _mask_seconds(out)) is not None:
                training["mask_seconds"] = seconds
            figures: dict[str, Any] = {"training": training}
            if erasure.starts:
                figures["start"] = dict(erasure.starts)
            erased = erasure.finish(trainer)
            erased = replace(erased, figures={**erased.figures, **figures})
            frozen = prove_frozen(trainer, erased.unet, out, ranks)
            ranks.first(lambda: save_folder(erased, out / MODEL_NAME))
        if judge is None or forget is None or curve is None:
            return frozen, None
        model.unet.to(device)  # only now: the run has a copy in its own precision
        with clock.stage("evaluate"):
            teacher = judge.of_teacher(model, config.seed, ranks)
            after = judge.of_erased(erased, forget, erasure.override, erasure.sampler, ranks)
        if teacher is None or after is None:
            return frozen, None  # the first process writes the report
        with clock.stage("pictures"):
            pictures = draw_pictures(
                model, erased, trainer.mask, teacher, after, curve.points, erasure.sampler, out
            )
        report = ErasureReport(
            class_names=model.class_names,
            teacher=teacher,
            after=after,
            frozen=frozen,
            mask_kind=config.mask.kind if mask is None else "given",
            density=trainer.mask.density,
            iterations=trainer.iteration,
            seed=config.seed,
            backend=backend,
            wall_s=clock.total(),
            training_s=trainer.stopwatch.seconds,
            processes=ranks.size,
            stage_s=clock.stages,
            machine=machine_facts(device),
            versions=versions(),
            config=config.flat(),
            curve=curve.points,
            resumed_at=resumed_at,
            teacher_ships=judge.teacher is not None,
            images=erasure.images,
        )
        report.write(out, pictures)
    return frozen, report


def train(
    trainer: Trainer, curve: Curve | None, erased: Callable[[], ModelFolder], ranks: Ranks
) -> None:
    """Train to the end; with a curve, measure forgetting and keeping as it goes.

    Args:
        trainer: of a distillation or a baseline.
        curve: measures where a point is due.
        erased: makes the model as it is now.
        ranks: the processes that share the run.
    """

    def visit() -> None:
        if curve is not None:
            curve.visit(trainer.iteration, trainer.stopwatch.seconds, erased)

    if trainer.iteration == 0:
        visit()
    for _ in saving_at_interrupt(trainer.run(), lambda: trainer.iteration, trainer.save, ranks):
        visit()


def _write_start(
    out: Path, starts: Mapping[str, Mapping[str, Any]], mask_seconds: float | None
) -> None:
    """Keep how a run began: a later start of it neither finds a mask nor times that."""
    begun: dict[str, Any] = {"start": dict(starts)}
    if mask_seconds is not None:
        begun["mask_seconds"] = round(mask_seconds, 2)
    write_text(out / START_NAME, json.dumps(begun, indent=2) + "\n")


def _mask_seconds(out: Path) -> float | None:
    """What finding the run's mask took, networks and optimizers made around it included.

    None where it was not searched for: given, drawn at random, full, or nobody timed it.
    """
    file = out / START_NAME
    if not file.is_file():
        return None
    try:
        seconds: float | None = json.loads(file.read_text(encoding="utf-8")).get("mask_seconds")
    except (ValueError, AttributeError) as error:
        raise PeckerError(f"{file}: not a JSON object ({error}); remove it") from error
    return seconds


def _finish(trainer: PeckerTrainer, model: ModelFolder) -> ModelFolder:
    """The erased model as it is now; it remembers where its one step starts."""
    erased = model.with_network(trainer.ema_generator(), "generator")
    figures = {
        "t_init": trainer.config.diffusion.t_init,
        "iterations": trainer.iteration,
        "mask_digest": trainer.mask.digest,
    }
    forget = trainer.config.forget
    if forget is not None:
        figures["forget"] = model.class_names[model.class_index(forget)]
    return replace(erased, figures=figures)
