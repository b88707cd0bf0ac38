"""What all pictures share: one style, colours, files.

matplotlib's figure objects are used directly: no pyplot, so no window system and no global state.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pecker_fast.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "FORGET_COLOR",
    "KEEP_COLOR",
    "MUTED_COLOR",
    "PAGE_COLOR",
    "RULE_COLOR",
    "TEXT_COLOR",
    "picture",
]

FORGET_COLOR = "#c62828"
KEEP_COLOR = "#1565c0"
TEXT_COLOR = "#212121"
MUTED_COLOR = "#616161"
RULE_COLOR = "#e0e0e0"
PAGE_COLOR = "#ffffff"
DPI = 150

_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a $ in a name is a $
    "text.color": TEXT_COLOR,
    "axes.labelcolor": TEXT_COLOR,
    "axes.edgecolor": "#9e9e9e",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": "#9e9e9e",
    "ytick.color": "#9e9e9e",
    "xtick.labelcolor": MUTED_COLOR,
    "ytick.labelcolor": MUTED_COLOR,
    "grid.color": RULE_COLOR,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pecker_fast",  # the same picture is the same file
}

_NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # said of an SVG


@contextmanager
def picture(
    target: str | os.PathLike[str] | io.StringIO,
    width: float,
    height: float,
    layout: Literal["constrained"] | None = "constrained",
) -> Iterator[Figure]:
    """An empty figure to draw into; written when the block ends.

    The target is a PNG file, written whole or not at all and cut to what is drawn, or a buffer for
    an SVG of exactly this size, in inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that the font lacks become boxes; a warning for each would bury everything else.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor=PAGE_COLOR)
        yield figure
        if isinstance(target, io.StringIO):
            figure.savefig(target, format="svg", transparent=True, metadata=_NOTHING)
            return
        with replacing(target) as temporary:
            figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.12)
