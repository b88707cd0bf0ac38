"""The demo: a class or a concept is erased from what is in this package, and judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pecker_fast.distill.config import load_config
from pecker_fast.erasure.api import erase
from pecker_fast.erasure.classes import ClassTask
from pecker_fast.erasure.erased import Erased
from pecker_fast.erasure.run import Site, carry_out
from pecker_fast.erasure.starts import load_start
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.reference import ClassFigures, real_beside
from pecker_fast.machine import usable_device
from pecker_fast.models import ModelFolder
from pecker_fast.runs.directory import Clock
from pecker_fast_demo import (
    emoji_first_stage_folder,
    emoji_folder,
    emoji_judges_folder,
    first_stage_folder,
    teacher_folder,
)

__all__ = ["demo", "demo_concept"]

PER_CLASS = 500
TEACHER_STEPS = 10  # of the text-to-image pipeline


def demo(
    out: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    device: str | torch.device = "auto",
    started: float | None = None,
) -> Erased:
    """Erase a class of the shipped Fashion-MNIST model into the run directory `out`; 1 minute.

    Args:
        out: where everything goes; the run that it holds is taken up.
        settings: dotted keys that are laid over the recipe `second_stage`, e.g. `{"seed": 1}`.
        force: delete that run instead.
        device: where to work.
        started: `time.monotonic()` at the start of the command. None: now.

    Raises:
        PeckerError: an unknown class or setting, or a directory that holds other things.

    Example:
        >>> demo(Path("demo"), {"iterations": 1}).report.gone
        False
    """
    # `until` would end it sooner; the falling learning rate of the rest brings the other classes
    # nearer to what they were.
    classes = {"forget": "Ankle boot", "override": "Bag"}
    config = load_config("second_stage", {**classes, **(settings or {})})
    site = Site(out=out, device=usable_device(device), force=force, clock=Clock(started))
    model = ModelFolder.load(teacher_folder())
    classifier = teacher_folder() / "classifier"
    judge = Judge(
        load_classifier(classifier),
        ClassStatistics.load(teacher_folder() / "statistics.safetensors"),
        per_class=PER_CLASS,
        real_figures=real_beside(classifier),
        teacher=ClassFigures.from_dict(model.figures["teacher"]),
    )
    starts = {
        "generator": load_start(first_stage_folder(), "generator", model.network),
        "pseudo_score": load_start(first_stage_folder(), "pseudo_score", model.network),
    }
    return carry_out(ClassTask(site, model, config, judge, starts))


def demo_concept(
    out: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    device: str | torch.device = "auto",
    started: float | None = None,
) -> Erased:
    """Erase dogs, named by prompt, from the pipeline of emoji; arguments as for `demo`."""
    return erase(
        emoji_folder(),
        out=out,
        config="demo_emoji_object",
        first_stage=emoji_first_stage_folder(),
        prompts=emoji_judges_folder() / "object.csv",
        classifier=emoji_judges_folder() / "object",
        teacher_steps=TEACHER_STEPS,
        force=force,
        device=device,
        started=started,
        settings=dict(settings or {}),
    )
