"""Density per parameter: the figures and their plot."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from pecker_fast.errors import PeckerError
from pecker_fast.files import replacing

__all__ = ["ParameterStats", "plot_density"]


@dataclass(frozen=True)
class ParameterStats:
    """One row of `SaliencyMask.stats`."""

    name: str
    numel: int
    nnz: int

    @property
    def density(self) -> float:
        """The fraction of salient entries; 0 for a parameter without entries."""
        return self.nnz / self.numel if self.numel else 0.0


# A column of more bars than this cannot be taken in at one look; the plot gets further columns.
_BARS_PER_COLUMN = 60
_INK, _MUTED, _BAR = "#222222", "#777777", "#3b6ea8"


def plot_density(rows: Sequence[ParameterStats], path: str | os.PathLike[str]) -> None:
    """Draw one horizontal bar per parameter, in model order, into a PNG file.

    The dashed line is the density over all parameters: bars past it hold more than their share.

    Raises:
        PeckerError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import; no pyplot, so no display is needed

    columns = math.ceil(len(rows) / _BARS_PER_COLUMN)
    height = math.ceil(len(rows) / columns)
    longest = max(len(row.name) for row in rows)
    numel, nnz = sum(row.numel for row in rows), sum(row.nnz for row in rows)
    # 7-point text: 0.062 inch a letter, 0.16 inch a line.
    figure = Figure(
        figsize=(columns * (2.8 + 0.062 * longest), 1.1 + 0.16 * max(height, 4)),
        layout="constrained",
    )
    figure.suptitle(
        f"{nnz:,} of {numel:,} entries are salient (density {nnz / numel:.3g}, dashed)",
        fontsize=10,
        color=_INK,
    )
    limit = 1.15 * max(row.density for row in rows)
    for column, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        shown = rows[column * height : (column + 1) * height]
        y = range(len(shown))
        axes.barh(y, [row.density for row in shown], height=0.75, color=_BAR)
        for position, row in zip(y, shown, strict=True):
            axes.annotate(
                f"{row.density:.1%}",
                (row.density, position),
                xytext=(2, 0),
                textcoords="offset points",
                va="center",
                fontsize=6,
                color=_MUTED,
            )
        axes.axvline(nnz / numel, color=_INK, linewidth=0.8, linestyle="--")
        axes.set_yticks(y, [row.name for row in shown], fontsize=7)
        axes.set_ylim(height - 0.4, -0.6)
        axes.set_xlim(0, limit)
        axes.set_xlabel("density", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
    except OSError as error:
        raise PeckerError(f"cannot write the plot {os.fspath(path)!r}: {error}") from error
