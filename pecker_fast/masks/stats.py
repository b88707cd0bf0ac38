"""Density per parameter: the figures and their plot."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from pecker_fast.errors import PeckerError
from pecker_fast.files import replacing

__all__ = ["ParameterStats", "block_of", "plot_density"]


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


def block_of(name: str) -> str:
    """The block of a U-Net that a parameter belongs to: "down_blocks.0", "conv_in"."""
    parts = name.split(".")
    # Blocks are numbered lists. Everything else goes by its first name.
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdecimal() else parts[0]


# A column of more bars than this cannot be taken in at one look, more columns than that do not fit
# a page.
_BARS_PER_COLUMN, _MAX_COLUMNS = 50, 3
_INK, _MUTED, _BAR = "#222222", "#666666", "#3b6ea8"


def plot_density(rows: Sequence[ParameterStats], path: str | os.PathLike[str]) -> None:
    """Draw one horizontal bar per layer, in model order, into a PNG file.

    A layer is a module with parameters of its own: its weight and bias share a bar. The dashed line
    is the density over all layers: bars past it hold more than their share.

    Raises:
        PeckerError: the file cannot be written.
    """
    # Slow to import; no pyplot, so no display is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = _by_layer(rows)
    columns = min(_MAX_COLUMNS, math.ceil(len(layers) / _BARS_PER_COLUMN))
    height = math.ceil(len(layers) / columns)
    longest = max(len(layer.name) for layer in layers)
    numel, nnz = sum(row.numel for row in rows), sum(row.nnz for row in rows)
    # 7-point text: 0.062 inch a letter, 0.16 inch a line.
    figure = Figure(
        figsize=(max(5.0, columns * (2.2 + 0.062 * longest)), 1.1 + 0.16 * max(height, 4)),
        dpi=120,
        layout="constrained",
    )
    figure.suptitle(
        f"{nnz:,} of {numel:,} entries are salient: density {nnz / numel:.3g} (dashed)",
        fontsize=10,
        color=_INK,
    )
    limit = 1.2 * max(layer.density for layer in layers)
    for column, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        shown = layers[column * height : (column + 1) * height]
        axes.axvline(nnz / numel, color=_INK, linewidth=0.8, linestyle="--", zorder=1.5)
        bars = axes.barh(range(len(shown)), [layer.density for layer in shown], color=_BAR)
        labels = [f"{layer.density:.1%}" for layer in shown]
        for label in axes.bar_label(bars, labels, padding=2, fontsize=6, color=_MUTED):
            # A number that meets the dashed line stays legible.
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
            label.set_in_layout(False)  # inside the axes anyway; measuring hundreds takes seconds
        axes.set_yticks(range(len(shown)), [layer.name for layer in shown], fontsize=7)
        axes.set_ylim(height - 0.4, -0.6)
        axes.set_xlim(0, limit)
        axes.xaxis.set_major_formatter("{x:.3g}")
        axes.set_xlabel("density", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    try:
        with replacing(path) as temporary:
            # `savefig` draws it all twice.
            FigureCanvasAgg(figure).print_png(temporary)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise PeckerError(f"cannot write the plot {os.fspath(path)!r}: {error}") from error


def _by_layer(rows: Sequence[ParameterStats]) -> list[ParameterStats]:
    """Parameters of one module added up; a parameter of the model itself is its own layer."""
    layers: dict[str, ParameterStats] = {}
    for row in rows:
        name = row.name.rpartition(".")[0] or row.name
        before = layers.get(name, ParameterStats(name, 0, 0))
        layers[name] = ParameterStats(name, before.numel + row.numel, before.nnz + row.nnz)
    return list(layers.values())
