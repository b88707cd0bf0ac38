"""The pictures of a report on an erased class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.grid import Block, class_groups, plot_rows
from pecker_fast.evaluate.line_chart import Series, line_chart
from pecker_fast.evaluate.page import Picture
from pecker_fast.evaluate.reference import ClassFigures
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.files import replacing
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder
from pecker_fast.runs.directory import PICTURE_NAMES

__all__ = ["draw_pictures", "plot_accuracy"]

PICTURE_COLUMNS = 8


def draw_pictures(
    model: ModelFolder,
    erased: ModelFolder,
    mask: SaliencyMask,
    teacher: ClassFigures,
    after: Evaluation,
    curve: Sequence[CurvePoint],
    sampler: Sampler,
    out: Path,
) -> list[Picture]:
    """Write the pictures of the report, in its order."""
    before_after, accuracy, density = (out / picture for picture in PICTURE_NAMES)
    name = model.class_names[after.forget]
    original, how = f"original model, {teacher.steps} steps", sampler.describe()
    labels = balanced_labels(model.num_classes, PICTURE_COLUMNS)
    blocks = []
    for title, way, folder, shares in (
        (f"Before: {original}", Sampler(teacher.steps, sampler.seed), model, teacher),
        (f"After: erased model, {how}", sampler, erased, after),
    ):
        images = way.sample(folder, labels, "pictures" if folder is model else None)
        assert images is not None  # one process
        row_by_row = images[labels.argsort(stable=True)] / 2 + 0.5
        notes = ["" if s is None else f"{100 * s:.0f} %" for s in shares.class_accuracy]
        blocks.append(Block(title, torch.split(row_by_row, PICTURE_COLUMNS), notes))
    plot_rows(before_after, class_groups(model.class_names, after.forget), blocks)
    pictures = [
        Picture(
            before_after.read_bytes(),
            "Before and after",
            "Every row was asked for one class, left and right from the same noise. The marked row "
            f"was asked for {name}. The figures beside the rows say how many images of each class, "
            "out of all that were judged, the classifier recognises as that class.",
        )
    ]
    if curve:
        chart = plot_accuracy(curve, name, teacher, after.forget, original, how)
        with replacing(accuracy) as temporary:
            temporary.write_bytes(chart)
        few = f"{curve[-1].forget_count} and {curve[-1].keep_count}"
        pictures.append(
            Picture(
                chart,
                "Forgetting and keeping, iteration by iteration",
                f"Images in {how} of the model as it was after so many iterations, {few} of them "
                "for a point: the shades are 95 % intervals. The table above rests on more. "
                "Iteration 0 is the network that the run started from.",
            )
        )
    mask.plot(density)
    pictures.append(
        Picture(
            density.read_bytes(),
            "Where the mask lets the model change",
            "Share of the parameters of each layer that were allowed to change. All others kept "
            "their bits.",
        )
    )
    return pictures


def plot_accuracy(
    points: Sequence[CurvePoint],
    name: str,
    teacher: ClassFigures,
    forget: int,
    original: str,
    how: str,
) -> bytes:
    """Draw forget and keep accuracy over the iterations, the teacher's levels as lines, as a PNG.

    `original` and `how` say how the images of the teacher and of the points were drawn.
    """
    series = []
    for title, part, level, color in (
        ("other classes", "keep", teacher.keep_accuracy(forget), "tab:blue"),
        (name, "forget", teacher.forget_accuracy(forget), "tab:red"),
    ):
        values = [(float(p.iteration), 100 * getattr(p, f"{part}_accuracy")) for p in points]
        shares = [point.kept if part == "keep" else point.forgotten for point in points]
        bounds = [(100 * s.interval.low, 100 * s.interval.high) for s in shares if s is not None]
        bounds = bounds if len(bounds) == len(values) else []
        dashed = {"color": color, "linestyle": "--"}
        series.append(Series(f"{title}: {original}", dashed, level=100 * level))
        series.append(Series(f"{title}: {how}", {"color": color}, values, bounds))
    return line_chart("recognised as the class asked for, %", {"iteration": series}, top=100)
