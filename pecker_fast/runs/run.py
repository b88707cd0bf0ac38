"""One run of a training method: what all methods share, and the loop.

A method is a subclass: `draw` makes the batch of an iteration out of its random numbers, `advance`
learns from it and says what the losses were, `parts` are what is saved. The rest is here: what the
run is of, taking it up again, the processes, learning rates, losses, seconds, progress and
checkpoints. All randomness of an iteration comes from (seed, iteration), so a run that is killed
and started again ends with the same bits: on a CPU, and with `deterministic` on CUDA as far as
torch has deterministic algorithms.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.nn.accelerate import fuse_, winograd_
from pecker_fast.progress import Progress
from pecker_fast.runs.config import RunConfig
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.learner import Learner
from pecker_fast.runs.live_memory import WEIGHTS
from pecker_fast.runs.metrics import ONE_LOSS, LossRecord, Metrics, open_tensorboard
from pecker_fast.runs.randomness import TRAINING, IterationRandom, same_algorithms

__all__ = ["Run", "Stateful", "Stopwatch", "fused_blocks"]

Batch = TypeVar("Batch")
Identity: TypeAlias = Callable[[], Mapping[str, str]]
"""() -> fingerprints of what a run depends on besides its configuration, e.g. by "model"."""


class Stateful(Protocol):
    """A part of a run that is saved."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, numbers, strings, and dicts and lists of them."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> Any:
        """Take it over."""


class Stopwatch:
    """Adds up the time of the blocks that run under it, over all starts of a run.

    So what a caller does between two iterations, such as judging images, does not count. On a GPU
    it ends where the iteration was launched; what is still queued counts as soon as somebody waits
    for it within such a block.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        """Go on from `seconds`."""
        self._before = seconds
        self._begun: float | None = None

    @property
    def seconds(self) -> float:
        """So far, an open block included."""
        running = 0.0 if self._begun is None else time.monotonic() - self._begun
        return self._before + running

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block."""
        self._begun = time.monotonic()
        try:
            yield
        finally:
            self._before, self._begun = self.seconds, None


class Run(ABC, Generic[Batch]):
    """A run of one method; `run` goes through it.

    Attributes:
        config: The constants.
        device: Where it takes place.
        iteration: Iterations that are done.
        stopwatch: Seconds of training so far, over all starts of the run.
        rows: This process's part of a batch of `config.batch_size`.
        share: The same as a fraction.
        learners: Whose learning rates follow the schedule.
        moved: Lines to show where the run goes on in another way than before.
    """

    lower: ClassVar[str]
    """The settings to lower where a number is not finite."""

    @property
    def warm_up(self) -> int:
        """Iterations after which one takes as long as the next."""
        return 0

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        identity: Identity,
        *,
        directory: RunDirectory | None = None,
        ranks: Ranks | None = None,
        title: str | None = None,
    ) -> None:
        """Read what the directory holds. A subclass makes its parts after this, then `begin`s.

        The identity is asked where it matters: with a directory, or with other processes. The
        directory is for the first process; without one nothing is written. Without a title no
        progress is shown.

        Raises:
            PeckerError: The directory holds another run, processes that do not agree or are more
                than there are samples, or nowhere to log to.
        """
        self._ranks = ranks = ranks or Ranks()
        if config.batch_size < ranks.size:
            raise PeckerError(
                f"batch_size {config.batch_size} for {ranks.size} processes: each needs one sample "
                "at least; raise batch_size or start fewer"
            )
        if config.logging.tensorboard and directory is None and ranks.is_first:
            raise PeckerError("logging.tensorboard needs a run directory to write to")
        self.config = config
        self.device = device
        self._deterministic = config.deterministic and device.type == "cuda"
        if self._deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.iteration = 0
        self.stopwatch = Stopwatch()
        self.rows = ranks.rows(config.batch_size)
        self.share = (self.rows.stop - self.rows.start) / config.batch_size
        self.learners: list[Learner] = []
        self._ema: Stateful | None = None  # average of the weights that learn
        self._directory = directory
        self._title = title if ranks.is_first else None
        self._identity: Mapping[str, str] = {}
        if directory is not None or not ranks.alone:
            self._identity = identity()
            for what, fingerprint in self._identity.items():
                ranks.check_same(fingerprint, _another(what))
            ranks.check_same(config.to_yaml(), "another configuration")
        self._saved = ranks.first(self._read_saved)
        self.moved: list[str] = []
        if self._saved is not None:
            before, now = self._saved["place"], self._place()
            self.moved = [
                f"the run had {before[what]} {what} and goes on with {now[what]}: the result may "
                "differ in its last bits"
                for what in before
                if before[what] != now[what]
            ]

    # ---- what a method is

    @property
    @abstractmethod
    def terms(self) -> Sequence[str]:
        """Names of its losses: `term`, `network/term`, or `ONE_LOSS` alone."""

    @abstractmethod
    def draw(self, random: IterationRandom) -> Batch:
        """What the next iteration learns from.

        Every process draws the whole batch and keeps its `rows`, so that the batch does not depend
        on how many there are.
        """

    @abstractmethod
    def advance(self, batch: Batch) -> Sequence[Tensor]:
        """One iteration; returns the mean of each term over this process's samples, scalars."""

    @abstractmethod
    def networks(self) -> Iterable[tuple[str, nn.Module]]:
        """(name, or "" where there is one; the network, its weights in place) of all that learn."""

    @abstractmethod
    def parts(self) -> Mapping[str, Stateful]:
        """What is saved, by its name in the checkpoint, in the order in which it is loaded."""

    def held(self) -> Iterator[tuple[str, Iterable[Tensor]]]:
        """What is there as long as the run is, besides its mask, by the kind of it."""
        for _, network in self.networks():
            yield WEIGHTS, network.parameters()
        for learner in self.learners:
            for state in learner.optimizer.state.values():
                for key, value in state.items():
                    yield "fp32 masters" if key == "master" else "optimizer state", [value]
        if self._ema is not None:
            yield "weight average", self._ema.state_dict().values()

    # ---- the run

    def begin(self) -> None:
        """Go on from the checkpoint, once all parts are made; describe the run in its directory."""
        if self._saved is not None:
            self.iteration = self._saved["iteration"]
            self.stopwatch = Stopwatch(self._saved["seconds"])
            for name, part in self.parts().items():
                part.load_state_dict(self._saved[name])
            self._saved = None
        self._ranks.first(self._describe)

    def run(self) -> Iterator[Metrics]:
        """Train to the end, one iteration per item; saves as it goes.

        Raises:
            PeckerError: A loss or a weight is not finite (nothing of it is saved), the disk is
                full, or another process has stopped. The last checkpoint stays.
        """
        config, every = self.config, self.config.logging
        record = LossRecord(self.terms, every.every, self.device, self._ranks, self.share)
        with self._shown() as show:
            while self.iteration < config.length:
                with self.stopwatch.running():
                    record.add(self.iteration + 1, self.iterate())
                    save = self._is_due(every.checkpoint_every)
                    with self._remedy():
                        read = record.read() if save or self._is_due(every.every) else None
                    show(read)
                    if save:
                        self.save()
                yield Metrics(self.iteration, read)

    def iterate(self) -> Sequence[Tensor]:
        """One iteration, of which nothing is read or written; its losses, as of `advance`."""
        random = IterationRandom(
            self.config.seed, self.iteration, self.device, TRAINING, self._ranks.rank
        )
        batch = self.draw(random)
        for learner in self.learners:
            learner.set_learning_rate(self.config.rate(self.iteration))
        with random.global_streams(), same_algorithms(self._deterministic):
            losses = self.advance(batch)
        self.iteration += 1
        return losses

    def checkpoint_bytes(self) -> int:
        """Of the tensors in a checkpoint, each once."""
        tensors = [leaf for leaf in tree_leaves(self._state()) if isinstance(leaf, Tensor)]
        stored = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}
        return sum(stored.values())

    def save(self) -> None:
        """Check the weights and write a checkpoint; call it between two iterations.

        Without a run directory only the check is left.

        Raises:
            PeckerError: A weight is not finite, or the disk is full. The last checkpoint stays.
        """
        for which, network in self.networks():
            for name, param in network.named_parameters():
                if not bool(torch.isfinite(param).all()):
                    what = f"{which} weight".strip()
                    with self._remedy():
                        raise PeckerError(
                            f"the {what} {name!r} is not finite after iteration {self.iteration}"
                        )
        self._ranks.first(self._write)

    def _is_due(self, every: int) -> bool:
        return self.iteration % every == 0 or self.iteration == self.config.length

    @contextmanager
    def _remedy(self) -> Iterator[None]:
        """Add to a refusal of numbers what is saved, and what to lower."""
        try:
            yield
        except PeckerError as error:
            place = self._directory
            standing = "nothing was saved" if place is None else place.standing()
            raise PeckerError(f"{error}: stopped; {standing}; lower {self.lower}") from None

    @contextmanager
    def _shown(self) -> Iterator[Callable[[Mapping[str, float] | None], None]]:
        """What shows an iteration that is done, and its losses where they were read."""
        with ExitStack() as stack:
            board: Any = None
            if self.config.logging.tensorboard and self._directory is not None:
                board = open_tensorboard(self._directory.path, self.iteration)
                stack.callback(board.close)
            progress = Progress(
                self._title, self.config.length, initial=self.iteration, patience=0.0
            )
            stack.callback(progress.close)

            def show(losses: Mapping[str, float] | None) -> None:
                if losses is not None:
                    progress.describe({name: f"{value:.4g}" for name, value in losses.items()})
                    for name, value in losses.items() if board is not None else ():
                        tag = name if name == ONE_LOSS else f"loss/{name}"
                        board.add_scalar(tag, value, self.iteration)
                progress.update()

            yield show

    # ---- the run directory; all of it on the first process

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "kind": type(self.config).__name__,
            "identity": dict(self._identity),
            "seconds": self.stopwatch.seconds,
            "place": self._place(),
            "config": self.config.flat(),
            **{name: part.state_dict() for name, part in self.parts().items()},
        }

    def _place(self) -> dict[str, Any]:
        """What the order of sums depends on, besides the machine."""
        threads = torch.get_num_threads() if self.device.type == "cpu" else "no"
        return {"device": self.device.type, "threads": threads, "processes": self._ranks.size}

    def _write(self) -> None:
        if self._directory is not None:
            self._directory.save(self.iteration, self._state())

    def _describe(self) -> None:
        """Write beside the checkpoints what can be read without them."""
        if self._directory is not None:
            self._directory.write_config(self.config.to_yaml())

    def _read_saved(self) -> dict[str, Any] | None:
        """The run that the directory holds, if there is one.

        Raises:
            PeckerError: It is of another method, model, data set or configuration.
        """
        saved = None if self._directory is None else self._directory.load()
        if saved is None or self._directory is None:
            return None
        where = self._directory.path
        if saved.get("kind") != type(self.config).__name__:
            raise PeckerError(f"{where} holds a run of another kind; choose another directory")
        theirs = saved["identity"]
        for what in {**theirs, **self._identity}:
            if theirs.get(what) != self._identity.get(what):
                on = "on" if what == "images" else "of"
                raise PeckerError(
                    f"{where} holds a run {on} {_another(what)}; resume it with the {what} that it "
                    "was started with, or choose another directory"
                )
        self.config.check_resumes(saved["config"], saved["iteration"], str(where))
        return saved


def fused_blocks(network: Callable[[], nn.Module], wanted: bool, device: torch.device) -> str:
    """Switch a network to fused blocks on a GPU, to Winograd's convolutions on a CPU.

    Says what came of it, in a line to show.
    """
    if not wanted:
        return "torch's blocks: accelerate is off in the configuration"
    switch = fuse_ if device.type == "cuda" else winograd_
    return str(switch(network()))


def _another(what: str) -> str:
    return f"other {what}" if what.endswith("s") else f"another {what}"
