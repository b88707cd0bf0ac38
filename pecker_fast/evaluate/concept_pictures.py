"""Pictures of forgetting a concept: prompts in groups, before and after, and over the iterations.

Every row is one prompt. All images of a row start from the same noise, so that what differs between
columns is the network's doing.
"""

from __future__ import annotations

import json
import math
import os
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.drawing import (
    DPI,
    FORGET_COLOR,
    MUTED_COLOR,
    TEXT_COLOR,
    frame,
    hide_axes,
    mark,
    new_figure,
    save_figure,
    show_image,
)
from pecker_fast.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Block", "ProgressStrip", "PromptGroup", "plot_before_after", "plot_prompts"]

_LABEL_INCHES, _LABEL_LETTERS, _LABEL_LINES = 2.6, 36, 6  # room for a prompt
_LINE_INCHES, _LETTER_INCHES = 0.155, 0.07  # of 9-point and 10-point text
_HEADING_INCHES = 0.34
_GAP = 0.05  # inches between images
_SMALL, _LARGE = 84, 160  # pixels of an image's longer side: small ones are enlarged, large reduced


@dataclass(frozen=True)
class PromptGroup:
    """Prompts that are shown together.

    Attributes:
        title: heading of the group.
        prompts: one row each.
        forgotten: these prompts name what was to be forgotten: marked.
    """

    title: str
    prompts: tuple[str, ...]
    forgotten: bool = False


@dataclass(frozen=True)
class Block:
    """Columns of images beneath one title.

    Attributes:
        title: printed above.
        images: (P * K, 1 or 3, H, W) in [0, 1]: K images for each of the P prompts of all groups
            in turn, the K of a prompt together.
    """

    title: str
    images: Tensor


def plot_before_after(
    path: str | os.PathLike[str],
    groups: Sequence[PromptGroup],
    before: Tensor,
    after: Tensor,
    titles: tuple[str, str] = ("Before: original model", "After: erased model, one step"),
) -> None:
    """Write a PNG: the same prompts and noise left and right, forgotten prompts marked.

    Args:
        path: the PNG file.
        groups: P prompts in all.
        before: the original model's images, (P * K, 1 or 3, H, W) in [0, 1], as in `Block`.
        after: the erased model's images, the same shape.
        titles: above the left and the right half.

    Raises:
        PeckerError: images that do not fit the prompts, or are not in [0, 1].
    """
    blocks = [Block(*half) for half in zip(titles, (before, after), strict=True)]
    plot_prompts(path, groups, blocks, space=0.3)


def plot_prompts(
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
        blocks: the columns.
        corner: what the titles of the blocks say, e.g. "iterations".
        space: inches between blocks.

    Raises:
        PeckerError: no prompts, or a block whose images do not fit them or are not in [0, 1].
    """
    count = sum(len(group.prompts) for group in groups)
    pixels = [_pixels(block, count) for block in blocks]
    width, height = _cell(pixels)
    widths = [len(row[0]) * (width + _GAP) - _GAP for row in pixels]
    titles = [
        _wrap(block.title, max(round(wide / _LETTER_INCHES), 9))
        for block, wide in zip(blocks, widths, strict=True)
    ]
    top = _LINE_INCHES * 1.2 * max(title.count("\n") + 1 for title in titles) + 0.06
    labels = [_wrap(p, _LABEL_LETTERS, _LABEL_LINES) for group in groups for p in group.prompts]
    heights = [max(height, _LINE_INCHES * (label.count("\n") + 1)) for label in labels]

    lefts = [_LABEL_INCHES + sum(widths[:i]) + i * space for i in range(len(blocks))]
    right = lefts[-1] + widths[-1]
    bottom = top + len(groups) * _HEADING_INCHES + sum(heights) + count * _GAP
    figure = new_figure(right + 0.1, bottom + 0.1, layout=None)
    ax = figure.add_axes((0, 0, 1, 1))
    hide_axes(ax, right + 0.1, bottom + 0.1)
    for title, left, wide in zip(titles, lefts, widths, strict=True):
        text = ax.text(left + wide / 2, top - 0.06, title, ha="center", va="bottom")
        text.set(fontsize=10, color=TEXT_COLOR, parse_math=False)
    ax.text(_LABEL_INCHES - 0.15, top - 0.06, corner, ha="right", va="bottom", color=MUTED_COLOR)

    y, row = top, 0
    for group in groups:
        _draw_heading(ax, group, y, right)
        y += _HEADING_INCHES
        start = y
        for _ in group.prompts:
            _draw_label(ax, labels[row], y + heights[row] / 2)
            for left, images in zip(lefts, pixels, strict=True):
                for column, picture in enumerate(images[row]):
                    x = left + column * (width + _GAP)
                    show_image(ax, picture, x, y + (heights[row] - height) / 2, width, height)
            y += heights[row] + _GAP
            row += 1
        if group.forgotten and group.prompts:
            margin = _GAP / 2
            for left, wide in _runs(lefts, widths, space):
                frame(ax, left - margin, start - margin, wide + 2 * margin, y - start)
    save_figure(figure, path)


class ProgressStrip:
    """A picture of the same prompts over the iterations of a run, drawn anew with every preview.

    The previews are kept in a file beside the picture, so that a run that goes on after it was
    stopped goes on with its strip.
    """

    PICTURE_NAME = "progress.png"
    PREVIEWS_NAME = "previews.safetensors"
    MAX_COLUMNS = 10  # of the picture: more previews are thinned out evenly
    _ORIGINAL = -1  # in place of an iteration
    _KEPT_SIDE = 192  # pixels of a preview that are kept: more is not visible in a strip

    def __init__(self, folder: Path, groups: Sequence[PromptGroup]) -> None:
        """Take up the previews that `folder` holds, if they are of the same prompts.

        Raises:
            PeckerError: no prompts, or a damaged file of previews.
        """
        self.groups = tuple(groups)
        self.prompts = [prompt for group in groups for prompt in group.prompts]
        if not self.prompts:
            raise PeckerError("previews: there are no prompts")
        self.path = folder / self.PICTURE_NAME
        self._store = folder / self.PREVIEWS_NAME
        self._title = "original"
        self._previews: dict[int, Tensor] = {}
        if self._store.exists():
            self._read()

    @property
    def iterations(self) -> list[int]:
        """Iterations that there is a preview of, ascending."""
        return sorted(set(self._previews) - {self._ORIGINAL})

    @property
    def has_original(self) -> bool:
        """Whether the first column, the original model, is there."""
        return self._ORIGINAL in self._previews

    def drop_after(self, iteration: int) -> None:
        """Forget previews of later iterations: a run goes on from `iteration`."""
        for later in [i for i in self._previews if i > iteration]:
            del self._previews[later]

    def add_original(self, images: Tensor, title: str = "original") -> None:
        """The first column: images (P, 1 or 3, H, W) in [0, 1] of the original model."""
        self._title = title
        self._add(self._ORIGINAL, images)

    def add(self, iteration: int, images: Tensor) -> None:
        """Images (P, 1 or 3, H, W) in [0, 1] of the network after so many iterations.

        A preview of the same iteration is replaced. The file and the picture are written.

        Raises:
            PeckerError: not one image a prompt, or values outside [0, 1].
        """
        self._add(iteration, images)

    def _add(self, key: int, images: Tensor) -> None:
        if len(images) != len(self.prompts):
            raise PeckerError(f"previews: {len(images)} images for {len(self.prompts)} prompts")
        small = _reduced(_checked(images, "previews"), self._KEPT_SIDE)
        self._previews[key] = (small * 255).round().byte().contiguous()
        facts = {"prompts": json.dumps(self.prompts), "title": self._title}
        with replacing(self._store) as temporary:
            named = {str(key): preview for key, preview in self._previews.items()}
            save_file(named, temporary, metadata=facts)
        self._draw()

    def _draw(self) -> None:
        shown = _evenly(self.iterations, self.MAX_COLUMNS - self.has_original)
        keys = [self._ORIGINAL] * self.has_original + shown
        titles = [self._title if key == self._ORIGINAL else f"{key:,}" for key in keys]
        blocks = [
            Block(title, self._previews[key].float() / 255)
            for title, key in zip(titles, keys, strict=True)
        ]
        plot_prompts(self.path, self.groups, blocks, corner="after iteration" if shown else "")

    def _read(self) -> None:
        try:
            with safe_open(self._store, framework="pt") as file:
                facts = file.metadata() or {}
                # Previews of other prompts belong to another picture: it starts anew.
                if json.loads(facts.get("prompts", "null")) != self.prompts:
                    return
                self._title = facts["title"]
                self._previews = {int(key): file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise PeckerError(f"{self._store}: cannot be read ({error}); delete it") from error


def _checked(images: Tensor, what: str) -> Tensor:
    """(N, C, H, W) float32 on the CPU; NaN, of a run that diverged, is drawn black."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise PeckerError(f"{what}: images must be (N, 1 or 3, H, W), got {tuple(images.shape)}")
    images = images.detach().float().cpu().nan_to_num(0.0)
    low, high = (float(value) for value in images.aminmax())
    if low < 0 or high > 1:
        raise PeckerError(f"{what}: images must lie in [0, 1], got {low:.3g} to {high:.3g}")
    return images


def _pixels(block: Block, prompts: int) -> np.ndarray[Any, Any]:
    """(P, K, H, W, 3)."""
    images = _checked(block.images, f"{block.title or 'block'!r}")
    if prompts == 0 or len(images) % prompts:
        raise PeckerError(
            f"{block.title!r}: {len(images)} images for {prompts} prompts; each prompt needs as "
            "many as the others"
        )
    shown = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return shown.reshape(prompts, -1, *shown.shape[1:])


def _reduced(images: Tensor, side: int) -> Tensor:
    scale = side / max(images.shape[-2:])
    if scale >= 1:
        return images
    size = [max(round(extent * scale), 1) for extent in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="area")


def _cell(pixels: Sequence[np.ndarray[Any, Any]]) -> tuple[float, float]:
    """Width and height of an image in inches: a whole multiple of its pixels where it is small."""
    height, width = pixels[0].shape[2:4]
    longer = max(height, width)
    shown = min(longer * math.ceil(_SMALL / longer), _LARGE)
    return width * shown / longer / DPI, height * shown / longer / DPI


def _runs(
    lefts: Sequence[float], widths: Sequence[float], space: float
) -> list[tuple[float, float]]:
    """Blocks that touch are framed as one: left and width of each frame."""
    if space <= _GAP:
        return [(lefts[0], lefts[-1] + widths[-1] - lefts[0])]
    return list(zip(lefts, widths, strict=True))


def _draw_heading(ax: Axes, group: PromptGroup, y: float, right: float) -> None:
    base = y + _HEADING_INCHES - 0.1
    text = ax.text(0.02, base, group.title, ha="left", va="bottom", parse_math=False)
    mark(text, group.forgotten)
    text.set_fontweight("bold")
    color = FORGET_COLOR if group.forgotten else "#bdbdbd"
    ax.plot([0.02, right], [base + 0.02] * 2, color=color, linewidth=0.8)


def _draw_label(ax: Axes, label: str, middle: float) -> None:
    x = _LABEL_INCHES - 0.15
    text = ax.text(x, middle, label, ha="right", va="center", linespacing=1.15)
    text.set(fontsize=9, color=TEXT_COLOR, parse_math=False)


def _wrap(text: str, letters: int, lines: int | None = None) -> str:
    """Text in lines of so many letters; what does not fit into `lines` ends in an ellipsis."""
    if any(unicodedata.east_asian_width(letter) in "WF" for letter in text):
        letters = max(letters // 2, 1)
    wrapped = textwrap.wrap(text, letters, max_lines=lines, placeholder=" …")
    return "\n".join(wrapped) or "(empty prompt)"


def _evenly(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spread, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
