"""How forgetting and keeping go while a run trains: few images for each of a few points.

They are kept in one JSON file beside the run's checkpoints, so a run that is taken up again goes on
with the points that it has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.distributed import Ranks
from pecker_fast.evaluate.forgetting import check_figures
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.judgement import Written
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.files import read_json, write_text
from pecker_fast.runs.reading import checked

if TYPE_CHECKING:
    from pecker_fast.distill.config import UntilSection
    from pecker_fast.models import ModelFolder

__all__ = ["ClassProbe", "Curve", "CurvePoint"]

_MEASURED = ("forget_accuracy", "keep_accuracy", "forget_count", "keep_count", "frechet")
POINTS = 12
"""Measurements during a run, besides the one at its start."""


@dataclass(frozen=True)
class CurvePoint:
    """What the model is like after some iterations."""

    iteration: int  # iterations that are done
    forget_accuracy: float  # share of the images of the class to forget that are recognised as such
    keep_accuracy: float  # share of the others that are recognised as what was asked for
    forget_count: int = 0  # images behind the first; 0 where nobody says
    keep_count: int = 0  # images behind the second
    # Seconds of training so far; judging does not count. None where nobody says.
    wall_s: float | None = None
    # Fréchet distance of the kept classes, or None without statistics of real images. It grows as
    # images become fewer: compare points of equal `keep_count`.
    frechet: float | None = None

    def __post_init__(self) -> None:
        counts = (self.iteration, self.forget_count, self.keep_count, self.wall_s)
        check_figures((self.forget_accuracy, self.keep_accuracy), counts)

    @property
    def forgotten(self) -> Share | None:
        """Images of the class to forget that are recognised; None: nobody says of how many."""
        return Share.of(self.forget_accuracy, self.forget_count) if self.forget_count else None

    @property
    def kept(self) -> Share | None:
        """The others that are, likewise."""
        return Share.of(self.keep_accuracy, self.keep_count) if self.keep_count else None

    def to_dict(self) -> dict[str, Any]:
        """Plain types with the 95 % intervals of both shares."""
        shares = {"forget": self.forgotten, "keep": self.kept}
        intervals = {
            f"{name}_interval": None if share is None else list(share.interval)
            for name, share in shares.items()
        }
        return {**asdict(self), **intervals}


class Curve:
    """The points of one run, measured where they are due and written at once."""

    def __init__(
        self,
        path: Path,
        draw: Callable[[], Tensor | None],
        measure: Callable[[Tensor, int], Mapping[str, Any]],
        iterations: tuple[int, int],
        ranks: Ranks,
        until: UntilSection | None = None,
        tell: Callable[[Mapping[str, Any], int], None] = lambda figures, iteration: None,
    ) -> None:
        """Read the points of an earlier start that lie before the iteration at which this goes on.

        Args:
            path: the JSON file; only the first process reads and writes it.
            draw: images of the model as it is now, (N, C, H, W); called on all processes, of which
                the first needs them.
            measure: figures of a point, of these images at an iteration; on the first process.
            iterations: those that are done, and the length of the run.
            ranks: the processes that share the run.
            until: what the run is over at, which more points look for.
            tell: is told the figures of each new point, and its iteration.

        Raises:
            PeckerError: the file is there and cannot be read.
        """
        done, total = iterations
        self.points: list[CurvePoint] = []
        if ranks.is_first:
            self.points = [point for point in read_curve(path) if point.iteration <= done]
        if until is None:
            self._due = {round(total * index / POINTS) for index in range(POINTS + 1)}
        else:
            self._due = {*range(0, total, until.every), total}
        self._until, self._tell = until, tell
        self._path = path
        self._draw, self._measure = draw, measure
        self._ranks = ranks

    def visit(self, iteration: int, wall_s: float) -> bool:
        """Measure if a point is due here; to be called on all processes.

        Returns:
            Whether the run is over: what is to be forgotten has gone, and the rest is kept.
        """
        if iteration not in self._due:
            return False
        there = bool(self.points) and self.points[-1].iteration == iteration
        if not self._ranks.broadcast(there):
            images = self._draw()
            self._ranks.first(lambda: self._keep(iteration, wall_s, images))
        return self._ranks.broadcast(self._is_over())

    def _is_over(self) -> bool:
        if self._until is None or len(self.points) < 2:
            return False
        start, now = self.points[0], self.points[-1]
        kept = now.keep_accuracy >= start.keep_accuracy - self._until.keep_drop
        return now.forget_accuracy <= self._until.forget and kept

    def _keep(self, iteration: int, wall_s: float, images: Tensor | None) -> None:
        assert images is not None  # this is the first process
        found = self._measure(images, iteration)
        self.points.append(CurvePoint(iteration, **found, wall_s=round(wall_s, 2)))
        write_text(self._path, json.dumps([asdict(point) for point in self.points]) + "\n")
        self._tell(found, iteration)


class ClassProbe:
    """Images of a class and of all others, and what a judge says of them."""

    def __init__(
        self,
        judge: Judge,
        model: ModelFolder,
        forget: int,
        sampler: Sampler,
        until: UntilSection | None = None,
    ) -> None:
        """Choose the images; `until` says how many where the run may be over before its end."""
        self._judge, self._forget, self._sampler = judge, forget, sampler
        self._names = model.class_names
        asked, others = judge.curve_images if until is None else (until.images, until.images)
        kept = [index for index in range(model.num_classes) if index != forget]
        self._labels = torch.tensor([forget] * asked + kept * -(-others // len(kept)))

    def draw(self, model: ModelFolder, ranks: Ranks) -> Tensor | None:
        """Its images, (N, C, H, W) in [-1, 1]; None on all processes but the first."""
        return self._sampler.sample(model, self._labels, ranks=ranks)

    def measure(self, images: Tensor, iteration: int) -> dict[str, Any]:
        """The figures of a point of the curve."""
        drawn = ImageSet(to_uint8(images), self._labels, self._names, f"iteration {iteration}")
        found = self._judge.evaluation(drawn, self._forget)
        return {name: getattr(found, name) for name in _MEASURED}


def read_curve(path: Path) -> list[CurvePoint]:
    """The points of a file; none where there is no file.

    Raises:
        PeckerError: it is there and cannot be read.
    """
    if not os.path.lexists(path):
        return []
    return checked(_Points, {"points": read_json(path)}, path).points


class _Points(Written):
    points: list[CurvePoint]
