"""Pictures of images in rows: classes or prompts, one model or several, before and after.

Every row is one prompt, or one class. All images of a row start from the same noise, so that what
differs between columns is the network's doing.
"""

from __future__ import annotations

import functools
import math
import os
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pecker_fast.files import replacing

__all__ = ["FORGET_COLOR", "Block", "PromptGroup", "class_groups", "plot_grid", "plot_rows"]

FORGET_COLOR = "#c62828"
_TEXT_COLOR, _MUTED_COLOR = "#212121", "#616161"
_LETTERS, _LINES = 36, 6  # room for a prompt
_SMALL, _LARGE = 84, 160  # pixels of an image's longer side: small ones are enlarged, large reduced
_GAP, _SPACE = 8, 24  # pixels between images, and between blocks of them
_HEADING, _NOTE = 52, 120  # pixels for the heading of a group, and for what stands right of a row


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


def class_groups(names: Sequence[str], forget: int | None) -> list[PromptGroup]:
    """Show classes in their order, the one to forget marked."""
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
    rows = [(images[labels == index][:columns] + 1) / 2 for index in shown]
    marked = shown.index(forget) if forget in shown else None
    plot_rows(path, class_groups([class_names[i] for i in shown], marked), [Block(title, rows)])


def plot_rows(
    path: str | os.PathLike[str],
    groups: Sequence[PromptGroup],
    blocks: Sequence[Block],
    corner: str = "",
) -> None:
    """Write a PNG: prompts at the left, then block by block of images.

    Args:
        path: the PNG file.
        groups: the rows, P prompts in all.
        blocks: the columns, of P rows each.
        corner: what the titles of the blocks say, e.g. "iterations".
    """
    rows = [[_pictures(row) for row in block.rows] for block in blocks]
    width, height = rows[0][0][0].size
    labels = [_wrap(prompt) for group in groups for prompt in group.prompts]
    extents = [_extent(label) for label in [*labels, corner]]
    heights = [max(height, extent[1]) + _GAP for extent in extents[:-1]]
    lefts = [max(extent[0] for extent in extents) + 2 * _SPACE]
    for block, images in zip(blocks, rows, strict=True):
        wide = max(map(len, images)) * (width + _GAP) - _GAP
        lefts.append(lefts[-1] + wide + _SPACE + _NOTE * bool(block.notes))
    titles = [(left, block.title) for left, block in zip(lefts, blocks, strict=False)]
    top = max(_extent(title)[1] for _, title in titles) + 2 * _GAP
    right = max(lefts[-1], *(left + _extent(title)[0] + _GAP for left, title in titles))
    bottom = top + sum(heights) + sum(_HEADING for group in groups if group.title) + _GAP
    sheet = Image.new("RGB", (right, bottom), "white")
    draw = ImageDraw.Draw(sheet)

    _write(draw, lefts[0] - _SPACE, top - _GAP, corner, "rd", _MUTED_COLOR)
    for left, title in titles:
        _write(draw, left, top - _GAP, title, "ld")
    notes = [end - _NOTE - _SPACE + _GAP for end in lefts[1:]]
    for block, left in zip(blocks, notes, strict=True):
        _write(draw, left, top - _GAP, "recognised" if block.notes else "", "ld", _MUTED_COLOR)
    y, row = top, 0
    for group in groups:
        color = FORGET_COLOR if group.forgotten else _TEXT_COLOR
        if group.title:
            _write(draw, _GAP, y + _HEADING - 2 * _GAP, group.title, "ld", color, bold=True)
            y += _HEADING
        start = y
        for _ in group.prompts:
            middle = y + (heights[row] - _GAP) // 2
            _write(draw, lefts[0] - _SPACE, middle, labels[row], "rm", color, group.forgotten)
            for block, images, left, beside in zip(blocks, rows, lefts, notes, strict=False):
                for column, image in enumerate(images[row]):
                    sheet.paste(image, (left + column * (width + _GAP), middle - height // 2))
                if block.notes:
                    _write(draw, beside, middle, block.notes[row], "lm", color, group.forgotten)
            y += heights[row]
            row += 1
        if group.forgotten and group.prompts:
            box = (_GAP, start - _GAP, right - _GAP, y)
            draw.rectangle(box, outline=color, width=4)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _pictures(images: Tensor) -> list[Image.Image]:
    """Images (K, 1 or 3, H, W) in [0, 1] as they are shown; NaN, of a run that diverged, is black.

    Enlarged ones keep their pixels, where smoothing would invent detail.
    """
    height, width = images.shape[-2:]
    longer = max(height, width)
    scale = min(math.ceil(_SMALL / longer), _LARGE / longer)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    known = images.detach().float().cpu().nan_to_num(0.0).clamp(0, 1)
    pixels = (known * 255).round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return [Image.fromarray(image.numpy()).resize(size, how) for image in pixels.contiguous()]


@functools.cache
def _font(bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load the font of matplotlib's charts."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), 19)


def _extent(text: str) -> tuple[int, int]:
    """Measure a text in pixels, width and height, in bold, which is larger."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=_font(bold=True))
    return math.ceil(right - left), math.ceil(bottom - top)


def _write(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    text: str,
    anchor: str,  # Pillow's: "r" is right, "l" left, then "m" middle, "d" bottom
    color: str = _TEXT_COLOR,
    bold: bool = False,
) -> None:
    align = "right" if anchor[0] == "r" else "left"
    draw.multiline_text((x, y), text, color, _font(bold), anchor, align=align)


def _wrap(prompt: str) -> str:
    """Break a prompt into lines; what does not fit ends in an ellipsis."""
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in prompt)
    letters = _LETTERS // 2 if wide else _LETTERS
    wrapped = textwrap.wrap(prompt, letters, max_lines=_LINES, placeholder=" …")
    return "\n".join(wrapped) or "(empty prompt)"
