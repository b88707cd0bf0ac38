"""One erasure from model to report: mask, distillation, model folder, figures, pictures.

`pecker-fast erase` and `pecker-fast demo` are this with different defaults. Everything goes into
one run directory; the same call on the same directory resumes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from torch import nn

from pecker_fast import backends
from pecker_fast.distill.checkpoint import RunDirectory
from pecker_fast.distill.conditions import ClassConditions
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier
from pecker_fast.evaluate.forgetting import (
    Evaluation,
    TeacherFigures,
    classify,
    evaluate_model,
)
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.grid import CurvePoint, plot_accuracy, plot_before_after
from pecker_fast.evaluate.report import ErasureReport, Picture
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.files import replacing_folder, write_text
from pecker_fast.machine import machine_facts, versions
from pecker_fast.mask import SaliencyMask
from pecker_fast.models import ModelFolder

__all__ = ["Clock", "Judge", "erase_class", "run_directory"]

CURVE_POINTS = 12  # measurements during the run, besides the one at its start
CURVE_IMAGES = (60, 117)  # images behind each: of the class to forget, of all others together
PICTURE_COLUMNS = 8

MODEL_NAME = "model"
CURVE_NAME = "curve.json"
_REPORT_NAMES = ("report.json", "report.html")
_PICTURE_NAMES = ("before_after.png", "accuracy.png", "density.png")
_OUTPUTS = (*_REPORT_NAMES, *_PICTURE_NAMES, CURVE_NAME, "config.yaml", "mask.safetensors")


@dataclass(frozen=True)
class Judge:
    """What a run is judged by.

    Attributes:
        classifier: names the class of an image.
        statistics: of real images, for the Fréchet distance, or None.
        per_class: images of each class.
        teacher: the teacher's figures where they ship with it; None to measure them.
        teacher_steps: DDIM steps of the teacher, where its figures are measured.
    """

    classifier: Classifier
    statistics: ClassStatistics | None
    per_class: int
    teacher: TeacherFigures | None = None
    teacher_steps: int = 50


def open_run(out: Path, force: bool) -> RunDirectory:
    """Lock the directory of a run: a new one, an empty one, or one that holds a run.

    Args:
        out: the directory.
        force: remove the run that it holds. Only files that a run writes are removed.

    Raises:
        PeckerError: it is a file, in use, not writable, or holds other things.
    """
    if out.exists() and not out.is_dir():
        raise PeckerError(f"{out}: is a file; give --out the name of a directory")
    if out.is_dir() and any(out.iterdir()) and not (out / "run.lock").exists():
        raise PeckerError(
            f"{out}: is not empty and holds no run of pecker-fast; choose another --out"
        )
    directory = RunDirectory(out)
    if force:
        for path in [*map(out.joinpath, _OUTPUTS), *out.glob("checkpoint-*.pt")]:
            path.unlink(missing_ok=True)
        shutil.rmtree(out / MODEL_NAME, ignore_errors=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
    return directory


@contextmanager
def run_directory(out: Path, force: bool, ranks: Ranks) -> Iterator[RunDirectory | None]:
    """As `open_run` on the first process; None on the others, which write nothing."""
    opened: list[RunDirectory] = []
    ranks.first(lambda: opened.append(open_run(out, force)))
    try:
        yield opened[0] if opened else None
    finally:
        for directory in opened:
            directory.close()


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
    generator: nn.Module | None = None,
    pseudo_score: nn.Module | None = None,
) -> ErasureReport | None:
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
        The report, or None without a judge and on all processes but the first.
    """
    ranks = ranks or Ranks()
    clock = Clock(started)
    # What is wrong with classes, time constants, backend or mask comes out before any writing.
    objective = Objective.from_model(model, config, device)
    conditions = objective.conditions
    assert isinstance(conditions, ClassConditions)  # a model folder's are
    forget, override = conditions.forget, conditions.override
    if forget is None and judge is not None:
        raise PeckerError(
            "erase: nothing is forgotten (forget is null), so there is no report to write; leave "
            "out --classifier and use `pecker-fast evaluate`"
        )
    backend = backends.name_of(backends.select(config.optimizer.backend, device))
    if mask is not None:
        mask.check(dict(model.unet.named_parameters()))
    with run_directory(out, force, ranks) as directory:
        with clock.stage("mask"):
            trainer = PeckerTrainer(
                objective,
                generator=generator,
                pseudo_score=pseudo_score,
                mask=mask,
                run_directory=directory,
                progress=True,
                ranks=ranks,
            )
        click.echo("; ".join(trainer.notes), err=True)
        resumed_at = trainer.iteration
        if resumed_at:
            click.echo(f"resuming at iteration {resumed_at} of {config.iterations}", err=True)
        if ranks.is_first:
            for name in _REPORT_NAMES:  # of an earlier state: must not stand beside a new one
                (out / name).unlink(missing_ok=True)
        with clock.stage("erase"):
            curve = _train(trainer, model, forget, out / CURVE_NAME, judge, ranks)
        with clock.stage("save"):
            erased = _finish(trainer, model)
            frozen = trainer.verify_frozen(erased.unet)
            ranks.first(lambda: save_folder(erased, out / MODEL_NAME))
        if judge is None or forget is None or not ranks.is_first:
            return None
        model.unet.to(device)  # only now: the run has a copy in its own precision
        with clock.stage("evaluate"):
            teacher, after = _judge(model, erased, judge, forget, override, config.seed)
        with clock.stage("pictures"):
            pictures = _draw(model, erased, trainer.mask, teacher, after, curve, config.seed, out)
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
            stage_s=clock.stages,
            machine=machine_facts(device),
            versions=versions(),
            config=config.flat(),
            curve=curve,
            resumed_at=resumed_at,
            teacher_ships=judge.teacher is not None,
        )
        report.write(out, pictures)
    return report


def save_folder(model: ModelFolder, path: Path) -> None:
    """Write a model folder, whole or not at all, in the place of one that may be there."""
    with replacing_folder(path) as partial:
        model.save(partial)


def _train(
    trainer: PeckerTrainer,
    model: ModelFolder,
    forget: int | None,
    path: Path,
    judge: Judge | None,
    ranks: Ranks,
) -> list[CurvePoint]:
    """Run the distillation; with a judge, measure forgetting and keeping as it goes."""
    total = trainer.config.iterations
    measured_at = {round(total * index / CURVE_POINTS) for index in range(1, CURVE_POINTS + 1)}
    curve = [point for point in _read_curve(path) if point.iteration <= trainer.iteration]

    def measure() -> None:
        if judge is None or forget is None or (curve and curve[-1].iteration == trainer.iteration):
            return
        curve.append(_measure_point(trainer, model, forget, judge.classifier))
        write_text(path, json.dumps([asdict(point) for point in curve]) + "\n")

    if trainer.iteration == 0:
        ranks.first(measure)
    try:
        for metrics in trainer.run():
            if metrics.iteration in measured_at:
                ranks.first(measure)
    except KeyboardInterrupt:
        click.echo("\nstart the same command again to go on from the last checkpoint", err=True)
        raise
    return curve


def _measure_point(
    trainer: PeckerTrainer, model: ModelFolder, forget: int, classifier: Classifier
) -> CurvePoint:
    count_forget, count_keep = CURVE_IMAGES
    kept = torch.tensor([index for index in range(model.num_classes) if index != forget])
    labels = torch.cat(
        [torch.full((count_forget,), forget), kept.repeat(-(-count_keep // len(kept)))]
    )
    images = Sampler(1, trainer.config.seed).sample(_finish(trainer, model), labels)
    correct = classify(classifier, images)[0].argmax(dim=1) == labels
    asked_forget = labels == forget
    return CurvePoint(
        trainer.iteration,
        float(correct[asked_forget].float().mean()),
        float(correct[~asked_forget].float().mean()),
    )


def _read_curve(path: Path) -> list[CurvePoint]:
    try:
        return [CurvePoint(**point) for point in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise PeckerError(f"{path}: cannot be read ({error}); delete it") from error


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


def _judge(
    model: ModelFolder,
    erased: ModelFolder,
    judge: Judge,
    forget: int,
    override: int | None,
    seed: int,
) -> tuple[TeacherFigures, Evaluation]:
    teacher = judge.teacher or TeacherFigures.measure(
        model,
        judge.classifier,
        judge.statistics,
        Sampler(judge.teacher_steps, seed),
        judge.per_class,
        progress="original model",
    )
    after = evaluate_model(
        erased,
        judge.classifier,
        judge.statistics,
        forget,
        Sampler(1, seed),
        judge.per_class,
        override,
        progress="erased model",
    )
    return teacher, after


def _draw(
    model: ModelFolder,
    erased: ModelFolder,
    mask: SaliencyMask,
    teacher: TeacherFigures,
    after: Evaluation,
    curve: list[CurvePoint],
    seed: int,
    out: Path,
) -> list[Picture]:
    """Write the pictures of the report, in the order in which it shows them."""
    name = model.class_names[after.forget]
    before_after, accuracy, density = (out / picture for picture in _PICTURE_NAMES)
    labels = balanced_labels(model.num_classes, PICTURE_COLUMNS)
    before = Sampler(teacher.steps, seed).sample(model, labels, progress="pictures")
    plot_before_after(
        before_after,
        before,
        Sampler(1, seed).sample(erased, labels),
        labels,
        model.class_names,
        after.forget,
        (f"Before: original model, {teacher.steps} steps", "After: erased model, one step"),
        (teacher.class_accuracy, after.class_accuracy),
        PICTURE_COLUMNS,
    )
    pictures = [
        Picture(
            before_after,
            "Before and after",
            "Every row was asked for one class, left and right from the same noise. The marked row "
            f"was asked for {name}. The figures beside the rows say how many images of each class, "
            "out of all that were judged, the classifier recognises as that class.",
        )
    ]
    if curve:
        plot_accuracy(
            accuracy,
            curve,
            name,
            teacher.forget_accuracy(after.forget),
            teacher.keep_accuracy(after.forget),
            f"original model, {teacher.steps} steps",
        )
        few = f"{CURVE_IMAGES[0]} and at least {CURVE_IMAGES[1]}"
        pictures.append(
            Picture(
                accuracy,
                "Forgetting and keeping, iteration by iteration",
                f"One-step images of the model as it was after so many iterations, {few} of them "
                "for a point; the table above rests on more. Iteration 0 is the original model, "
                "which was never made for one step.",
            )
        )
    mask.plot(density)
    pictures.append(
        Picture(
            density,
            "Where the mask lets the model change",
            "Share of the parameters of each layer that were allowed to change. All others kept "
            "their bits.",
        )
    )
    return pictures


class Clock:
    """Seconds per stage, and in all since the start."""

    def __init__(self, started: float | None) -> None:
        now = time.monotonic()
        self.started = now if started is None else started
        self.stages: dict[str, float] = {} if started is None else {"load": now - started}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as this stage."""
        begun = time.monotonic()
        yield
        self.stages[name] = time.monotonic() - begun

    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started
