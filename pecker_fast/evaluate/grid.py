"""The pictures of the report: sample grids, before and after, accuracy over iterations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.drawing import (
    FORGET_COLOR,
    KEEP_COLOR,
    MUTED_COLOR,
    TEXT_COLOR,
    frame,
    hide_axes,
    mark,
    new_figure,
    save_figure,
    show_image,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_accuracy", "plot_before_after", "plot_grid"]

_CELL_INCHES = 0.46  # side of one image in a grid
_GAP = 0.08  # space between images, as a share of their side


def plot_grid(
    path: str | os.PathLike[str],
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    title: str,
    forget: int | None = None,
    columns: int = 10,
) -> None:
    """Write a PNG: one row per class, up to `columns` of its images in a row.

    Args:
        path: the PNG file.
        images: (N, C, H, W) in [-1, 1], C = 1 or 3.
        labels: (N,) what each image was asked to be.
        class_names: all class names, by index; classes without images get no row.
        title: printed above the grid.
        forget: the class whose row is marked, or None.
        columns: most images in a row.
    """
    rows = _rows(images, labels, len(class_names), columns)
    columns = max(len(row) for row in rows.values())
    figure, (left,) = _grid_figure(len(rows), [columns], class_names)
    _draw_rows(left, rows, columns, forget)
    _label_rows(left, rows, class_names, forget)
    left.set_title(title, color=TEXT_COLOR, fontsize=11, pad=8)
    save_figure(figure, path)


def plot_before_after(
    path: str | os.PathLike[str],
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    forget: int,
    titles: tuple[str, str],
    shares: tuple[Sequence[float | None], Sequence[float | None]] | None = None,
    columns: int = 8,
) -> None:
    """Write a PNG: two grids side by side, the same rows, the forgotten row marked.

    Args:
        path: the PNG file.
        before: (N, C, H, W) images of the teacher, in [-1, 1].
        after: (N, C, H, W) images of the erased model, in [-1, 1].
        labels: (N,) what each image was asked to be, in both.
        class_names: all class names, by index.
        forget: the class whose row is marked.
        titles: above the left and the right grid.
        shares: per class, the share of images recognised as that class, before and after;
            printed right of each grid.
        columns: most images in a row.
    """
    halves = [_rows(images, labels, len(class_names), columns) for images in (before, after)]
    columns = max(len(row) for row in halves[0].values())
    figure, axes = _grid_figure(len(halves[0]), [columns, columns], class_names)
    for number, (ax, rows) in enumerate(zip(axes, halves, strict=True)):
        _draw_rows(ax, rows, columns, forget)
        ax.set_title(titles[number], color=TEXT_COLOR, fontsize=11, pad=24)
        if shares is not None:
            _print_shares(ax, rows, columns, shares[number], forget)
    _label_rows(axes[0], halves[0], class_names, forget)
    save_figure(figure, path)


def plot_accuracy(
    path: str | os.PathLike[str],
    points: Sequence[CurvePoint],
    forget_name: str,
    teacher_forget: float | None,
    teacher_keep: float | None,
    teacher_label: str = "teacher",
    label: str = "one step",
) -> None:
    """Write a PNG: forget and keep accuracy over the iterations, the teacher's levels as lines.

    Args:
        path: the PNG file.
        points: at least one.
        forget_name: the class to forget.
        teacher_forget: the teacher's accuracy on it, or None.
        teacher_keep: the teacher's accuracy on the others, or None.
        teacher_label: how the teacher's images were drawn, e.g. "teacher, 50 steps".
        label: how those of the points were drawn.
    """
    if not points:
        raise PeckerError("accuracy plot: there is no measured point to plot")
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.2, 3.9)
    ax = figure.subplots()
    iterations = [point.iteration for point in points]
    curves = (
        ("other classes", [p.keep_accuracy for p in points], teacher_keep, KEEP_COLOR),
        (forget_name, [p.forget_accuracy for p in points], teacher_forget, FORGET_COLOR),
    )
    for name, values, teacher, color in curves:
        if teacher is not None:
            level = f"{name}: {teacher_label}"
            ax.axhline(teacher, color=color, linestyle="--", linewidth=1, alpha=0.7, label=level)
        ax.plot(iterations, values, color=color, marker="o", markersize=4, label=f"{name}: {label}")
    ax.set_ylim(-0.04, 1.04)
    ax.set_xlim(min(0, iterations[0]), max(iterations[-1], 1) * 1.02)
    ax.set_yticks(np.linspace(0, 1, 6), [f"{round(100 * y)} %" for y in np.linspace(0, 1, 6)])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("iteration")
    ax.set_ylabel("recognised as the class asked for")
    ax.grid(axis="y", color="#e0e0e0", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    # Outside, because the curves end in every corner of the axes.
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, frameon=False, fontsize=8.5)
    save_figure(figure, path)


def _rows(images: Tensor, labels: Tensor, classes: int, columns: int) -> dict[int, np.ndarray]:
    """Class index -> its first images, (n, H, W, 3) in [0, 1]; classes without images left out."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise PeckerError(
            f"grid: images must be (N, 1 or 3, H, W) to be drawn, got {tuple(images.shape)}"
        )
    if len(images) == 0 or len(images) != len(labels):
        raise PeckerError(f"grid: {len(images)} images for {len(labels)} labels")
    shown = (images.float().clamp(-1, 1) + 1) / 2
    pixels = shown.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    rows = {index: pixels[(labels == index).numpy()][:columns] for index in range(classes)}
    return {index: row for index, row in rows.items() if len(row)}


def _grid_figure(
    rows: int, columns: list[int], class_names: Sequence[str]
) -> tuple[Figure, Sequence[Axes]]:
    names = 0.1 * max(len(name) for name in class_names)
    pitch = _CELL_INCHES * (1 + _GAP)
    width = pitch * sum(columns) + names + 1.0 * len(columns)
    figure = new_figure(width, pitch * rows + 0.8)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    return figure, list(axes)


def _draw_rows(ax: Axes, rows: dict[int, np.ndarray], columns: int, forget: int | None) -> None:
    """Draw the images in units of their side, with gaps between them and around all."""
    hide_axes(ax, columns * (1 + _GAP) + _GAP, len(rows) * (1 + _GAP) + _GAP)
    for position, (index, row) in enumerate(rows.items()):
        y = _top(position)
        for column, picture in enumerate(row):
            show_image(ax, picture, _GAP + column * (1 + _GAP), y, 1, 1)
        if index == forget:
            frame(ax, 0, y - _GAP, columns * (1 + _GAP) + _GAP, 1 + 2 * _GAP)


def _top(position: int) -> float:
    return _GAP + position * (1 + _GAP)


def _label_rows(
    ax: Axes, rows: dict[int, np.ndarray], class_names: Sequence[str], forget: int | None
) -> None:
    centres = [_top(position) + 0.5 for position in range(len(rows))]
    ax.set_yticks(centres, [class_names[index] for index in rows])
    ax.tick_params(axis="y", length=0, pad=6)
    for tick, index in zip(ax.get_yticklabels(), rows, strict=True):
        mark(tick, index == forget)


def _print_shares(
    ax: Axes,
    rows: dict[int, np.ndarray],
    columns: int,
    shares: Sequence[float | None],
    forget: int,
) -> None:
    x = columns * (1 + _GAP) + 0.23
    for position, index in enumerate(rows):
        share = shares[index]
        if share is not None:
            y = _top(position) + 0.5
            mark(ax.text(x, y, f"{100 * share:.0f} %", va="center"), index == forget)
    ax.text(x, -0.12, "recognised", va="bottom", ha="left", fontsize=8, color=MUTED_COLOR)
