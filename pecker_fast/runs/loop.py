"""The loop that all trainers share: losses that are read seldom, checkpoints, progress, seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import nn
from tqdm import tqdm

from pecker_fast.distill.config import LoggingSection
from pecker_fast.errors import PeckerError
from pecker_fast.runs.checkpoint import RunDirectory
from pecker_fast.runs.metrics import ONE_LOSS, LossRecord, Metrics, open_tensorboard
from pecker_fast.runs.stopwatch import Stopwatch

__all__ = ["Loop", "Resumable"]


class Resumable(Protocol):
    """What a trainer is to its loop.

    Attributes:
        iteration: Iterations that are done.
        stopwatch: Seconds of training so far, over all starts of the run.
    """

    iteration: int
    stopwatch: Stopwatch

    def save(self) -> None:
        """Write a checkpoint; called between two iterations."""


class Loop:
    """Drives a trainer through its iterations and says what to do where one went wrong."""

    def __init__(
        self,
        trainer: Resumable,
        logging: LoggingSection,
        directory: RunDirectory | None,
        lower: str,
    ) -> None:
        """Of one run.

        Args:
            trainer: Knows how far it is.
            logging: How often losses are read and checkpoints written.
            directory: Where TensorBoard's files go. None = nowhere.
            lower: The settings to lower where a number is not finite.
        """
        self._trainer = trainer
        self._logging = logging
        self._directory = directory
        self._lower = lower

    def steps(
        self,
        advance: Callable[[], None],
        record: LossRecord,
        total: int,
        title: str | None,
    ) -> Iterator[Metrics]:
        """Train until `total` iterations are done, one per item.

        Args:
            advance: Does an iteration, counts it and keeps its losses in `record`.
            record: Read every `logging.every` iterations and at checkpoints.
            total: Iterations.
            title: Of a progress bar. None = no bar.

        Raises:
            PeckerError: A loss is not finite, or what `save` raises.
        """
        trainer, logging = self._trainer, self._logging
        board = None
        if logging.tensorboard and self._directory is not None:
            board = open_tensorboard(self._directory.path, trainer.iteration)
        bar = tqdm(
            total=total, initial=trainer.iteration, desc=title, unit="it", disable=title is None
        )
        try:
            while trainer.iteration < total:
                with trainer.stopwatch:
                    advance()
                    done = trainer.iteration
                    save = done == total or done % logging.checkpoint_every == 0
                    losses = None
                    if save or done % logging.every == 0:
                        losses = self._read(record)
                        bar.set_postfix({name: f"{value:.4g}" for name, value in losses.items()})
                    if board is not None and losses is not None:
                        for name, value in losses.items():
                            tag = name if name == ONE_LOSS else f"loss/{name}"
                            board.add_scalar(tag, value, done)
                    if save:
                        trainer.save()
                bar.update()
                yield Metrics(done, losses)
        finally:
            bar.close()
            if board is not None:
                board.close()

    def check_finite(self, network: nn.Module, kind: str = "") -> None:
        """Look at every weight before it is saved.

        Args:
            network: What is trained.
            kind: Which one it is, for the message.

        Raises:
            PeckerError: A weight is not finite; the first is named.
        """
        for name, param in network.named_parameters():
            if not bool(torch.isfinite(param).all()):
                what = f"{kind} weight".strip()
                raise PeckerError(
                    f"the {what} {name!r} is not finite after iteration "
                    f"{self._trainer.iteration}: {self._remedy()}"
                )

    def _read(self, record: LossRecord) -> dict[str, float]:
        try:
            return record.read()
        except PeckerError as error:
            raise PeckerError(f"{error}: {self._remedy()}") from None

    def _remedy(self) -> str:
        standing = "nothing was saved" if self._directory is None else self._directory.standing()
        return f"stopped; {standing}; lower {self._lower}"
