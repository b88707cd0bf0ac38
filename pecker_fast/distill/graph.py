"""One CUDA graph per iteration: captured after a few ordinary iterations, replayed from then on.

A replay reads labels, noise and time steps from tensors that are filled before it, the learning
rate from a tensor on the device, and dropout draws from torch's generator, whose seed is set anew
for every iteration. So a replayed iteration computes what an ordinary one would.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pecker_fast.backends.device import captured_tables
from pecker_fast.distill.iteration import IterationInputs
from pecker_fast.errors import PeckerRuntimeError
from pecker_fast.optim.adamw import MaskedAdamW
from pecker_fast.runs.learner import Learner

__all__ = ["WARM_UP", "CudaCapture", "IterationGraph"]

WARM_UP = 3
"""Ordinary iterations before the capture: libraries choose algorithms, optimizers make tables."""

Losses: TypeAlias = tuple[Tensor, ...]

_failed: list[torch.cuda.CUDAGraph] = []


class CudaCapture:
    """Captures work into CUDA graphs, on a stream of its own.

    Ordinary work goes to the same stream before: autograd keeps to the stream on which it first met
    a parameter, and tables are remembered by stream.
    """

    def __init__(self, device: torch.device) -> None:
        """Make the stream on `device`."""
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def aside(self, work: Callable[[], Losses]) -> Losses:
        """Do the work on the stream; the current one waits for it."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = work()
        current.wait_stream(self._stream)
        return losses

    def capture(self, work: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
        """Record the work without doing it.

        Returns:
            Where its results will be, and the function that does it.

        Raises:
            RuntimeError: The work waits for the device, or does what a capture forbids. Stream,
                generator and memory are as they were.
        """
        # Step by step instead of by `torch.cuda.graph`, which leaves the capture's stream in place
        # and its pool in use where the end of a capture fails.
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        with torch.cuda.stream(self._stream), captured_tables() as tables:
            graph.capture_begin(pool)
            try:
                losses = work()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # which says less than the first one
                    self._end(graph, pool)
                raise
            self._end(graph, pool)

        def replay(kept: list[Tensor] = tables) -> None:
            graph.replay()

        return losses, replay

    def _end(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        """End a capture, the generator and the memory pool included where CUDA refuses to."""
        try:
            graph.capture_end()
        except RuntimeError:
            # It raises before it gives these back. Of the capture a copy of the generator's state
            # knows nothing; the allocator of pinned memory goes on asking the graph, so that stays.
            _failed.append(graph)
            index = self._device.index or 0
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(index, pool)
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_releasePool(index, pool)
            raise

    def check(self) -> None:
        """Refuse to go on where a failed capture has left the device unusable.

        Raises:
            PeckerRuntimeError: No number can be drawn, or no memory had.
        """
        try:
            torch.rand((), device=self._device).add_(1)
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            raise PeckerRuntimeError(
                "the failed capture of a CUDA graph left the device unusable "
                f"({str(error).splitlines()[0]}): start the run again with graph: off"
            ) from error


class IterationGraph:
    """Runs iterations, through a graph where that is possible.

    Attributes:
        reason: Why there is no graph and will be none; None while there is or may be one.
    """

    def __init__(
        self,
        compute: Callable[[IterationInputs], Losses],
        learners: Sequence[Learner],
        device: torch.device,
        capture: CudaCapture | str,
    ) -> None:
        """Prepare; nothing is captured yet.

        `compute` steps the optimizers of the learners, launches on `device` alone and never waits
        for it. `capture` makes the graph, or is the reason why there is to be none.
        """
        self._compute = compute
        self._learners = learners
        self._device = device
        self._capture = None if isinstance(capture, str) else capture
        self.reason = capture if isinstance(capture, str) else None
        self.reset()

    @property
    def captured(self) -> bool:
        """Whether iterations are replayed."""
        return self._replay is not None

    def reset(self) -> None:
        """Forget the graph: what it captured (masks, tables) is no longer so."""
        self._ordinary = 0
        self._inputs: list[Tensor] = []
        self._losses: Losses | None = None
        self._replay: Callable[[], None] | None = None
        for learner in self._learners:
            if isinstance(learner.optimizer, MaskedAdamW):
                learner.optimizer.forget_captures()

    def run(self, inputs: IterationInputs) -> Losses:
        """One iteration; the losses are valid until the next one."""
        if self._capture is not None and self._replay is None and self._ordinary >= WARM_UP:
            self._try_to_capture(self._capture, inputs)
        if self._replay is not None and self._losses is not None:
            for fixed, value in zip(self._inputs, inputs.tensors(), strict=True):
                fixed.copy_(value)
            self._replay()
            return self._losses
        self._ordinary += 1
        with _algorithms_chosen(self._ordinary <= WARM_UP):
            if self._capture is None:
                return self._compute(inputs)
            return self._capture.aside(lambda: self._compute(inputs))

    def _try_to_capture(self, capture: CudaCapture, inputs: IterationInputs) -> None:
        fixed = [tensor.clone() for tensor in inputs.tensors()]
        try:
            with _host_restored(self._learners):
                for learner in self._learners:
                    learner.keep_learning_rate_on(self._device)
                losses, replay = capture.capture(lambda: self._compute(inputs.with_tensors(fixed)))
        except RuntimeError as error:
            self._capture = None
            capture.check()
            self.reason = f"the iteration cannot be captured: {str(error).splitlines()[0]}"
            warnings.warn(f"no CUDA graph: {self.reason}", stacklevel=3)
            return
        self._inputs, self._losses, self._replay = fixed, losses, replay


@contextlib.contextmanager
def _algorithms_chosen(by_trying: bool) -> Iterator[None]:
    """For each convolution that is new cuDNN tries its algorithms, and goes on with the fastest.

    Not where results are to be the same in each run.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    if by_trying and not cudnn.deterministic:
        cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextlib.contextmanager
def _host_restored(learners: Sequence[Learner]) -> Iterator[None]:
    """Put back what a failed capture leaves changed although nothing ran.

    That is step counts on the host, gradients, modes and the place of the learning rate.
    """
    states = (state for learner in learners for state in learner.optimizer.state.values())
    values = (value for state in states for value in state.values())
    steps = [(v, v.clone()) for v in values if isinstance(v, Tensor) and v.device.type == "cpu"]
    try:
        yield
    except RuntimeError:
        for value, before in steps:
            value.copy_(before)
        for learner in learners:
            learner.optimizer.zero_grad(set_to_none=True)
            learner.rest()
            learner.keep_learning_rate_on_host()
        raise
