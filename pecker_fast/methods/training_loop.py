"""The loop that teachers and classifiers are trained by: steps, checkpoints, losses, progress.

All random numbers of an iteration come from (seed, iteration), so a run that is killed and started
again ends with the bits of an uninterrupted one. Under several processes each computes its rows of
the same global batch, and gradients are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pecker_fast.distributed import GradientReducer, Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.methods.training_config import TrainingConfig
from pecker_fast.runs.checkpoint import RunDirectory
from pecker_fast.runs.learner import learning_rate_factor
from pecker_fast.runs.loop import Loop
from pecker_fast.runs.metrics import ONE_LOSS, LossRecord, Metrics
from pecker_fast.runs.randomness import TRAINING, IterationRandom
from pecker_fast.runs.stopwatch import Stopwatch

__all__ = ["LossOf", "Training"]

LossOf: TypeAlias = Callable[[int, IterationRandom], Tensor]
"""(iteration, its random numbers) -> this process's part of the loss; the sum is minimised."""


class Training:
    """A network, its optimizer and what they have learnt so far.

    Attributes:
        iteration: Iterations that are done.
        network: The network that is trained, in train mode.
        stopwatch: Seconds of training so far, over all starts of the run.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        loss_of: LossOf,
        config: TrainingConfig,
        iterations: int,
        *,
        identity: str,
        ema_decay: float | None = None,
        directory: RunDirectory | None = None,
        ranks: Ranks | None = None,
        progress: str | None = None,
    ) -> None:
        """Take up the run that the directory holds, or start one.

        Args:
            network: On the run's device, the same on every process.
            optimizer: Of its parameters; no weight is changed before this is made.
            loss_of: Computes the loss of an iteration.
            config: The constants.
            iterations: Length of the run.
            identity: Of all that the run depends on beside the configuration, for resuming.
            ema_decay: Of the average of the weights, which starts at the first ones. None = none.
            directory: Where checkpoints go, on the first process. None = nothing is written.
            ranks: The processes that share the run. None = this one.
            progress: Title of a progress bar. None = no bar.

        Raises:
            PeckerError: The directory holds another run.
        """
        self.network = network
        self.iteration = 0
        self.stopwatch = Stopwatch()
        self._optimizer = optimizer
        self._loss_of = loss_of
        self._config = config
        self._kind = type(config).__name__  # a teacher's run and a classifier's look alike
        self._total = iterations
        self._identity = identity
        self._directory = directory
        self._ranks = ranks = ranks or Ranks()
        self._title = progress if ranks.is_first else None
        self._params = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._device = next(iter(self._params.values())).device
        self._base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self._average: dict[str, Tensor] = {}
        if ema_decay is not None:
            self._average = {name: p.detach().clone() for name, p in self._params.items()}
            update: Any = get_ema_multi_avg_fn(ema_decay)  # type: ignore[no-untyped-call]
            self._update_average = update
        # Each process has its part of the sum, so that nothing is to be weighted.
        self._losses = LossRecord(config.logging.every, self._device, ranks, 1.0, [ONE_LOSS])
        self._loop = Loop(self, config.logging, directory, lower="lr")
        ranks.check_same(identity, "other images or another network")
        ranks.check_same(config.to_yaml(), "another configuration")
        saved = ranks.first(self._saved_run)
        if saved is not None:
            self._load(saved)
        self._reducer = None if ranks.alone else GradientReducer(self._params, None, ranks)
        ranks.first(self._describe_run)

    def run(self) -> None:
        """Train to the end, saving on the way.

        Raises:
            PeckerError: The loss or a weight is not finite (nothing of it is saved), the disk is
                full, or another process has stopped. The last checkpoint stays.
        """
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[Metrics]:
        """The same, one iteration per item."""
        self.network.train()
        return self._loop.steps(self._iterate, self._losses, self._total, self._title)

    def averages(self) -> Mapping[str, Tensor]:
        """The weights to use, by parameter name: their average, or the last ones without one."""
        return self._average or {name: p.detach() for name, p in self._params.items()}

    # ---- one iteration

    def _iterate(self) -> None:
        self._set_learning_rate()
        random = IterationRandom(
            self._config.seed, self.iteration, self._device, TRAINING, self._ranks.rank
        )
        with random.global_streams():
            loss = self._loss_of(self.iteration, random)
            if self._reducer is not None:
                self._reducer.before_last_backward()
            loss.backward()  # type: ignore[no-untyped-call]
        if self._reducer is not None:
            self._reducer.finish()
        limit = self._config.optimizer.clip_norm
        if limit is not None:
            nn.utils.clip_grad_norm_(self._params.values(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average:
            with torch.no_grad():
                weights = [p.detach() for p in self._params.values()]
                self._update_average(list(self._average.values()), weights, None)
        self.iteration += 1
        self._losses.add_terms(self.iteration, [loss])

    def _set_learning_rate(self) -> None:
        warmup, schedule = self._config.warmup, self._config.lr_schedule
        if self.iteration < warmup:
            factor = (self.iteration + 1) / warmup
        elif schedule == "constant":
            factor = 1.0
        else:
            done, length = self.iteration - warmup, self._total - warmup
            factor = learning_rate_factor(schedule, done, length)
        for group, lr in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * factor

    # ---- checkpoints

    def save(self) -> None:
        """Check the weights and write a checkpoint; call it between two iterations.

        Raises:
            PeckerError: A weight is not finite, or the disk is full. The last checkpoint stays.
        """
        self._loop.check_finite(self.network)
        self._ranks.first(self._write)

    def _write(self) -> None:
        if self._directory is None:
            return
        state = {
            "kind": self._kind,
            "identity": self._identity,
            "seconds": self.stopwatch.seconds,
            "config": self._config.flat(),
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average,
        }
        self._directory.save(self.iteration, state)

    def _describe_run(self) -> None:
        if self._directory is not None:
            self._directory.write_config(self._config.to_yaml())

    def _saved_run(self) -> dict[str, Any] | None:
        """The run that the directory holds, if there is one."""
        saved = None if self._directory is None else self._directory.load()
        if saved is None or self._directory is None:
            return None
        where = self._directory.path
        if saved.get("kind") != self._kind:
            raise PeckerError(f"{where} holds a run of another kind; choose another directory")
        if saved["identity"] != self._identity:
            raise PeckerError(
                f"{where} holds a run on other images or with another network; resume it with "
                "those that it was started with, or choose another directory"
            )
        self._config.check_resumes(saved["config"], saved["iteration"], str(where))
        return saved

    def _load(self, saved: dict[str, Any]) -> None:
        self.iteration = saved["iteration"]
        self.stopwatch = Stopwatch(saved["seconds"])
        self.network.load_state_dict(saved["network"])
        self._optimizer.load_state_dict(saved["optimizer"])
        for name, average in self._average.items():
            average.copy_(saved["average"][name])
