"""Pictures of images in rows: classes or prompts, one model or several, before and after.

Every row is one prompt, or one class. All images of a row start from the same noise, so that what
differs between columns is the network's doing.
"""

from __future__ import annotations

import math
import os
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pecker_fast.evaluate.drawing import DPI, FORGET_COLOR, MUTED_COLOR, TEXT_COLOR, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Block",
    "PromptGroup",
    "class_groups",
    "drawable",
    "plot_before_after",
    "plot_grid",
    "plot_rows",
]

_LETTERS, _LINES = 36, 6  # room for a prompt
_LINE_INCHES, _LETTER_INCHES = 0.155, 0.075  # of 9-point text
_HEADING_INCHES = 0.34
_NOTE_INCHES = 0.8  # for what is printed right of a row
_GAP = 0.05  # inches between images
_SMALL, _LARGE = 84, 160  # pixels of an image's longer side: small ones are enlarged, large reduced


@dataclass(frozen=True)
class PromptGroup:
    """Prompts, or names of classes, that are shown together."""

    title: str  # heading of the group; "" for none
    prompts: tuple[str, ...]  # one row each
    forgotten: bool = False  # these prompts name what was to be forgotten: marked


@dataclass(frozen=True)
class Block:
    """Columns of images beneath one title."""

    title: str  # printed above
    # For each of the prompts of all groups in turn (K, 1 or 3, H, W) in [0, 1].
    rows: Sequence[Tensor]
    notes: Sequence[str] = ()  # for each of them, what is printed right of it; empty for nothing

    @classmethod
    def of(cls, title: str, images: Tensor, prompts: int, notes: Sequence[str] = ()) -> Block:
        """Images (prompts * K, 1 or 3, H, W), the K of a prompt together."""
        return cls(title, torch.split(images, len(images) // prompts), notes)


def class_groups(names: Sequence[str], forget: int | None) -> list[PromptGroup]:
    """Classes in their order, the one to forget marked."""
    if forget is None:
        return [PromptGroup("", tuple(names))]
    parts = (names[:forget], names[forget : forget + 1], names[forget + 1 :])
    return [PromptGroup("", tuple(part), part is parts[1]) for part in parts]


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
        images: (N, 1 or 3, H, W) in [-1, 1].
        labels: (N,) what each image was asked to be.
        class_names: all class names, by index; classes without images get no row.
        title: printed above the grid.
        forget: the class whose row is marked, or None.
        columns: most images in a row.
    """
    shown = sorted(set(labels.tolist()))
    rows = [(images[labels == index][:columns].clamp(-1, 1) + 1) / 2 for index in shown]
    marked = shown.index(forget) if forget in shown else None
    plot_rows(path, class_groups([class_names[i] for i in shown], marked), [Block(title, rows)])


def plot_before_after(
    path: str | os.PathLike[str],
    groups: Sequence[PromptGroup],
    before: Tensor,
    after: Tensor,
    titles: tuple[str, str] = ("Before: original model", "After: erased model, one step"),
    notes: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> None:
    """Write a PNG: the same prompts and noise left and right, forgotten prompts marked.

    Args:
        path: the PNG file.
        groups: P prompts in all.
        before: the original model's images, (P * K, 1 or 3, H, W) in [0, 1], the K of a prompt
            together.
        after: the erased model's images, the same shape.
        titles: above the left and the right half.
        notes: right of each row of the halves; empty for nothing.
    """
    count = sum(len(group.prompts) for group in groups)
    halves = zip(titles, (before, after), notes, strict=True)
    blocks = [Block.of(title, images, count, note) for title, images, note in halves]
    plot_rows(path, groups, blocks, space=0.3)


def plot_rows(
    path: str | os.PathLike[str],
    groups: Sequence[PromptGroup],
    blocks: Sequence[Block],
    corner: str = "",
    space: float = _GAP,
) -> None:
    """Write a PNG: prompts at the left, then block by block of images.

    Args:
        path: the PNG file.
        groups: the rows, P prompts in all.
        blocks: the columns, of P rows each.
        corner: what the titles of the blocks say, e.g. "iterations".
        space: inches between blocks.
    """
    rows = [[drawable(row) for row in block.rows] for block in blocks]
    width, height = _cell(*rows[0][0].shape[:-3:-1])
    widths = [max(map(len, block)) * (width + _GAP) - _GAP for block in rows]
    labels = [_wrap(p, _LETTERS, _LINES) for group in groups for p in group.prompts]
    heights = [max(height, _LINE_INCHES * (label.count("\n") + 1)) for label in labels]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    lefts = [_LETTER_INCHES * longest + 0.2]
    for block, wide in zip(blocks, widths, strict=True):
        lefts.append(lefts[-1] + wide + space + _NOTE_INCHES * bool(block.notes))
    right = lefts.pop() - space
    least = 9 if len(blocks) > 1 else 40  # a title may be wider than the only block
    titles = [
        _wrap(block.title, max(round(wide / _LETTER_INCHES), least)) if block.title else ""
        for block, wide in zip(blocks, widths, strict=True)
    ]
    top = _LINE_INCHES * 1.2 * max(title.count("\n") + 1 for title in titles) + 0.06
    bottom = top + sum(heights) + len(labels) * _GAP
    bottom += sum(_HEADING_INCHES for group in groups if group.title)

    with picture(path, right + 0.1, bottom + 0.1, layout=None) as figure:
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, right + 0.1), ylim=(bottom + 0.1, 0))
        ax.set_axis_off()
        for block, title, left, wide in zip(blocks, titles, lefts, widths, strict=True):
            ax.text(left + wide / 2, top - 0.06, title, ha="center", va="bottom")
            if block.notes:
                text = ax.text(left + wide + 0.1, top - 0.06, "recognised", va="bottom")
                text.set(fontsize=8, color=MUTED_COLOR)
        corners = ax.text(lefts[0] - 0.15, top - 0.06, corner, ha="right", va="bottom")
        corners.set_color(MUTED_COLOR)
        y, row = top, 0
        for group in groups:
            look = {"color": FORGET_COLOR, "weight": "bold"} if group.forgotten else {}
            if group.title:
                base = y + _HEADING_INCHES - 0.1
                color = FORGET_COLOR if group.forgotten else TEXT_COLOR
                ax.text(0.02, base, group.title, va="bottom", weight="bold", color=color)
                ax.plot([0.02, right], [base + 0.02] * 2, color=color, linewidth=0.8, alpha=0.5)
                y += _HEADING_INCHES
            start = y
            for _ in group.prompts:
                middle = y + heights[row] / 2
                # Beneath a marked heading the prompts need no mark of their own.
                label = ax.text(lefts[0] - 0.15, middle, labels[row], ha="right", va="center")
                label.set(fontsize=9, linespacing=1.15, **({} if group.title else look))
                for block, images, left, wide in zip(blocks, rows, lefts, widths, strict=True):
                    for column, image in enumerate(images[row]):
                        x = left + column * (width + _GAP)
                        _show(ax, image, x, middle - height / 2, width, height)
                    if block.notes:
                        note = ax.text(left + wide + 0.1, middle, block.notes[row], va="center")
                        note.set(fontsize=9, **look)
                y += heights[row] + _GAP
                row += 1
            if group.forgotten and group.prompts:
                boxes = list(zip(lefts, widths, strict=True))
                if space <= _GAP:  # blocks that touch are framed as one
                    boxes = [(lefts[0], right - lefts[0])]
                for left, wide in boxes:
                    _frame(ax, left - _GAP / 2, start - _GAP / 2, wide + _GAP, y - start)


def drawable(images: Tensor) -> Tensor:
    """(N, 1 or 3, H, W) float32 on the CPU; NaN, of a run that diverged, is drawn black."""
    return images.detach().float().cpu().nan_to_num(0.0)


def _cell(width: int, height: int) -> tuple[float, float]:
    """Width and height of an image in inches: a whole multiple of its pixels where it is small."""
    longer = max(height, width)
    shown = min(longer * math.ceil(_SMALL / longer), _LARGE)
    return width * shown / longer / DPI, height * shown / longer / DPI


def _show(ax: Axes, image: Tensor, x: float, y: float, width: float, height: float) -> None:
    """Draw (1 or 3, H, W) in [0, 1] with its upper left corner at (x, y), y downwards."""
    ax.imshow(
        image.expand(3, -1, -1).permute(1, 2, 0).numpy(),
        extent=(x, x + width, y + height, y),
        # Nearest keeps the pixels of small images, where smoothing would invent detail; of large
        # ones it would drop pixels.
        interpolation="nearest" if width * DPI >= image.shape[-1] - 0.5 else "hanning",
    )


def _frame(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    """A frame around what was to be forgotten."""
    from matplotlib.patches import Rectangle

    box = Rectangle((x, y), width, height, fill=False, edgecolor=FORGET_COLOR, linewidth=2.5)
    ax.add_patch(box).set_clip_on(False)


def _wrap(text: str, letters: int, lines: int | None = None) -> str:
    """Text in lines of so many letters; what does not fit into `lines` ends in an ellipsis."""
    if any(unicodedata.east_asian_width(letter) in "WF" for letter in text):
        letters = max(letters // 2, 1)
    wrapped = textwrap.wrap(text, letters, max_lines=lines, placeholder=" …")
    return "\n".join(wrapped) or "(empty prompt)"
