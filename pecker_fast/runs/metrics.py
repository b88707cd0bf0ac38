"""What a run reports: losses that are read seldom, and TensorBoard when asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError

__all__ = ["LOSS_NAMES", "ONE_LOSS", "LossRecord", "Metrics", "open_tensorboard"]

LOSS_NAMES = (
    "pseudo_score/remain",
    "pseudo_score/forget",
    "generator/remain",
    "generator/forget",
    "one_step/remain",
    "one_step/forget",
    "every_step/remain",
    "every_step/forget",
)
"""The terms, each a mean over its half of the batch, without its lambda."""

ONE_LOSS = "loss"
"""Name of the term where there is only one."""


@dataclass(frozen=True)
class Metrics:
    """What one iteration yields."""

    iteration: int  # Iterations that are done, this one included
    # Name of a term -> mean since the last reading; None where the losses were not read. A
    # distillation's are `LOSS_NAMES`, and no sign of convergence: the generator loss can be
    # negative and hovers at 0.
    losses: Mapping[str, float] | None


class LossRecord:
    """The losses since the last reading, kept on the device: no iteration waits for a number."""

    def __init__(
        self, names: Sequence[str], capacity: int, device: torch.device, ranks: Ranks, share: float
    ) -> None:
        """Room for `capacity` iterations between two readings.

        The terms have `names`. Each of the processes, which have a `share` of the batch each, reads
        the mean over all of it.
        """
        self._names = tuple(names)
        self._ranks = ranks
        self._share = share
        self._values = torch.zeros(capacity, len(self._names), device=device)
        self._iterations: list[int] = []

    def add(self, iteration: int, terms: Sequence[Tensor]) -> None:
        """Keep the terms of one iteration: scalars in the order of `names`."""
        self._values[len(self._iterations)] = torch.stack([term.detach() for term in terms])
        self._iterations.append(iteration)

    def read(self) -> dict[str, float]:
        """Their means over all processes, after which the record is empty.

        Raises:
            PeckerError: A loss is not finite; the first iteration and term are named.
        """
        rows = self._ranks.sum_(self._values[: len(self._iterations)] * self._share).tolist()
        for iteration, row in zip(self._iterations, rows, strict=True):
            for name, value in zip(self._names, row, strict=True):
                if not math.isfinite(value):
                    network, _, term = name.rpartition("/")
                    what = f"{network} loss ({term} term)" if network else f"{term} loss"
                    what = ONE_LOSS if name == ONE_LOSS else what
                    raise PeckerError(f"the {what} is {value} at iteration {iteration}")
        self._iterations.clear()
        columns = zip(*rows, strict=True)
        return {
            name: sum(column) / len(rows) for name, column in zip(self._names, columns, strict=True)
        }


def open_tensorboard(directory: Path, first_iteration: int) -> Any:
    """A TensorBoard writer that forgets what a killed run logged after its last checkpoint.

    Raises:
        PeckerError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PeckerError(
            "logging.tensorboard needs the package tensorboard: pip install "
            "'pecker-fast[tensorboard]', or set logging.tensorboard to false"
        ) from None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=first_iteration + 1)
