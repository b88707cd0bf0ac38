"""The pictures of a report on an erased class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.drawing import FORGET_COLOR, KEEP_COLOR
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.grid import class_groups, plot_before_after
from pecker_fast.evaluate.line_chart import Axis, Series, plot_chart
from pecker_fast.evaluate.page import Picture
from pecker_fast.evaluate.reference import ClassFigures
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
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
    how = "one step" if sampler.steps == 1 else f"{sampler.steps} steps"
    labels = balanced_labels(model.num_classes, PICTURE_COLUMNS)
    row_by_row = labels.argsort(stable=True)

    def drawn(sampler: Sampler, folder: ModelFolder, progress: str | None = None) -> Tensor:
        images = sampler.sample(folder, labels, progress)
        assert images is not None  # one process
        return (images[row_by_row].clamp(-1, 1) + 1) / 2

    def recognised(shares: Sequence[float | None]) -> list[str]:
        return ["" if share is None else f"{100 * share:.0f} %" for share in shares]

    plot_before_after(
        before_after,
        class_groups(model.class_names, after.forget),
        drawn(Sampler(teacher.steps, sampler.seed), model, "pictures"),
        drawn(sampler, erased),
        (f"Before: original model, {teacher.steps} steps", f"After: erased model, {how}"),
        (recognised(teacher.class_accuracy), recognised(after.class_accuracy)),
    )
    pictures = [
        Picture(
            before_after,
            "Before and after",
            "Every row was asked for one class, left and right from the same noise. The marked row "
            f"was asked for {name}. The figures beside the rows say how many images of each class, "
            "out of all that were judged, the classifier recognises as that class.",
            wide=True,
        )
    ]
    if curve:
        original = f"original model, {teacher.steps} steps"
        plot_accuracy(accuracy, curve, name, teacher, after.forget, original, how)
        few = f"{curve[-1].forget_count} and {curve[-1].keep_count}"
        pictures.append(
            Picture(
                accuracy,
                "Forgetting and keeping, iteration by iteration",
                f"Images in {how} of the model as it was after so many iterations, {few} of them "
                "for a point: the shades are 95 % intervals. The table above rests on more. "
                "Iteration 0 is the network that the run started from.",
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


def plot_accuracy(
    path: Path,
    points: Sequence[CurvePoint],
    name: str,
    teacher: ClassFigures,
    forget: int,
    original: str,
    how: str,
) -> None:
    """Write a PNG: forget and keep accuracy over the iterations, the teacher's levels as lines.

    `original` and `how` say how the images of the teacher and of the points were drawn.
    """
    series = []
    for title, kind, level, color in (
        ("other classes", "keep", teacher.keep_accuracy(forget), KEEP_COLOR),
        (name, "forget", teacher.forget_accuracy(forget), FORGET_COLOR),
    ):
        values = [
            (float(point.iteration), 100 * getattr(point, f"{kind}_accuracy")) for point in points
        ]
        shares = [point.kept if kind == "keep" else point.forgotten for point in points]
        bounds = [
            (100 * share.interval.low, 100 * share.interval.high) for share in shares if share
        ]
        dashed = {"color": color, "linestyle": "--"}
        series.append(Series(f"{title}: {original}", dashed, level=100 * level))
        bounds = bounds if len(bounds) == len(values) else []
        series.append(Series(f"{title}: {how}", {"color": color}, values, bounds=bounds))
    percent = Axis("recognised as the class asked for", "{:.3g} %".format, top=100)
    plot_chart(path, Axis("iteration", "{:,.0f}".format), percent, series)
