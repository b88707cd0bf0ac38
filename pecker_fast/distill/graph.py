"""One CUDA graph per iteration: captured after a few ordinary iterations, replayed from then on.

A replay reads labels, noise and time steps from tensors that are filled before it, the learning
rate from a tensor on the device, and dropout draws from torch's generator, whose seed is set anew
for every iteration. So a replayed iteration computes what an ordinary one would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pecker_fast.distill.iteration import IterationInputs
from pecker_fast.optim.adamw import MaskedAdamW
from pecker_fast.runs.learner import Learner

__all__ = ["WARM_UP", "CudaCapture", "IterationGraph"]

WARM_UP = 3
"""Ordinary iterations before the capture: libraries choose algorithms, optimizers make tables."""

Losses: TypeAlias = tuple[Tensor, ...]


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
            RuntimeError: The work waits for the device, or does what a capture forbids.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            losses = work()
        return losses, graph.replay


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

        Args:
            compute: The iteration: launches on `device` alone, no waiting for it.
            learners: Whose optimizers it steps.
            device: Where it runs.
            capture: Makes the graph, or the reason why there is to be none.
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
        if self._capture is None:
            return self._compute(inputs)
        return self._capture.aside(lambda: self._compute(inputs))

    def _try_to_capture(self, capture: CudaCapture, inputs: IterationInputs) -> None:
        before = [_HostState(learner) for learner in self._learners]
        fixed = [tensor.clone() for tensor in inputs.tensors()]
        try:
            for learner in self._learners:
                learner.keep_learning_rate_on(self._device)
            losses, replay = capture.capture(lambda: self._compute(inputs.with_tensors(fixed)))
        except RuntimeError as error:
            for state in before:
                state.restore()
            self._capture = None
            self.reason = f"the iteration cannot be captured: {str(error).splitlines()[0]}"
            warnings.warn(f"no CUDA graph: {self.reason}", stacklevel=3)
            return
        self._inputs, self._losses, self._replay = fixed, losses, replay


class _HostState:
    """What a failed capture leaves changed although nothing ran.

    That is step counts on the host, gradients, modes and the place of the learning rate.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._steps = [
            (value, value.clone())
            for state in learner.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor) and value.device.type == "cpu"
        ]

    def restore(self) -> None:
        for value, before in self._steps:
            value.copy_(before)
        self._learner.optimizer.zero_grad(set_to_none=True)
        self._learner.rest()
        self._learner.keep_learning_rate_on_host()
