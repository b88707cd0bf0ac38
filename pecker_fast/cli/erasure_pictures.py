"""The pictures of a report on an erased class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.forgetting import Evaluation, TeacherFigures
from pecker_fast.evaluate.grid import plot_accuracy, plot_before_after
from pecker_fast.evaluate.report import Picture
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder
from pecker_fast.runs.outputs import PICTURE_NAMES

__all__ = ["draw_pictures"]

PICTURE_COLUMNS = 8


def draw_pictures(
    model: ModelFolder,
    erased: ModelFolder,
    mask: SaliencyMask,
    teacher: TeacherFigures,
    after: Evaluation,
    curve: Sequence[CurvePoint],
    sampler: Sampler,
    out: Path,
) -> list[Picture]:
    """Write the pictures of the report, in the order in which it shows them."""
    name = model.class_names[after.forget]
    before_after, accuracy, density = (out / picture for picture in PICTURE_NAMES)
    how = "one step" if sampler.steps == 1 else f"{sampler.steps} steps"
    labels = balanced_labels(model.num_classes, PICTURE_COLUMNS)
    before = Sampler(teacher.steps, sampler.seed).sample(model, labels, progress="pictures")
    plot_before_after(
        before_after,
        before,
        sampler.sample(erased, labels),
        labels,
        model.class_names,
        after.forget,
        (f"Before: original model, {teacher.steps} steps", f"After: erased model, {how}"),
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
            how,
        )
        start = "Iteration 0 is the original model"
        if sampler.steps == 1:
            start += ", which was never made for one step"
        few = f"{curve[-1].forget_count} and {curve[-1].keep_count}"
        pictures.append(
            Picture(
                accuracy,
                "Forgetting and keeping, iteration by iteration",
                f"Images in {how} of the model as it was after so many iterations, {few} of them "
                f"for a point; the table above rests on more. {start}.",
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
