"""What all pictures share: colours, images in a figure, frames, files.

matplotlib's figure objects are used directly: no pyplot, so no window system and no global state.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Literal

from pecker_fast.files import replacing

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "FORGET_COLOR",
    "KEEP_COLOR",
    "MUTED_COLOR",
    "TEXT_COLOR",
    "frame",
    "hide_axes",
    "mark",
    "new_figure",
    "save_figure",
    "show_image",
]

FORGET_COLOR = "#c62828"
KEEP_COLOR = "#1565c0"
TEXT_COLOR = "#212121"
MUTED_COLOR = "#616161"
DPI = 150


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty white figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def show_image(
    ax: Axes, pixels: np.ndarray[Any, Any], x: float, y: float, width: float, height: float
) -> None:
    """Draw (H, W, 3) pixels in [0, 1] with their upper left corner at (x, y), y downwards."""
    across = ax.transData.transform([(0, 0), (width, 0)])
    enlarged = abs(across[1, 0] - across[0, 0]) >= pixels.shape[1]
    ax.imshow(
        pixels,
        extent=(x, x + width, y + height, y),
        # Nearest keeps the pixels of small images, where smoothing would invent detail; of large
        # ones it would drop pixels.
        interpolation="nearest" if enlarged else "hanning",
        vmin=0,
        vmax=1,
    )


def frame(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    """A frame around what was to be forgotten."""
    from matplotlib.patches import Rectangle

    ax.add_patch(
        Rectangle(
            (x, y),
            width,
            height,
            fill=False,
            edgecolor=FORGET_COLOR,
            linewidth=2.5,
            clip_on=False,
        )
    )


def hide_axes(ax: Axes, width: float, height: float) -> None:
    """Leave a plane of 0 .. width by 0 .. height, y downwards, without ticks and spines."""
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def mark(text: Any, forgotten: bool) -> None:
    """Set a label's look: what was to be forgotten is red and bold."""
    text.set_fontsize(10)
    text.set_color(FORGET_COLOR if forgotten else TEXT_COLOR)
    text.set_fontweight("bold" if forgotten else "normal")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as temporary, warnings.catch_warnings():
        # Letters that the font lacks become boxes; a warning for each would bury everything else.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.12)
