"""One CUDA graph per iteration: captured after a few ordinary iterations, replayed from then on.

A replay reads labels, noise and time steps from tensors that are filled before it, the learning
rate from a tensor on the device, and dropout draws from torch's generator, whose seed is set anew
for every iteration. So a replayed iteration computes what an ordinary one would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from pecker_fast.distill.iteration import IterationInputs
from pecker_fast.distill.learner import Learner

__all__ = ["WARM_UP", "IterationGraph"]

WARM_UP = 3
"""Ordinary iterations before the capture: libraries choose algorithms, optimizers make tables."""

_Losses = tuple[Tensor, Tensor]


class IterationGraph:
    """Runs iterations, through a graph where that is possible.

    Attributes:
        reason: Why there is no graph and will be none; None while there is or may be one.
    """

    def __init__(
        self,
        compute: Callable[[IterationInputs], _Losses],
        learners: Sequence[Learner],
        device: torch.device,
        mode: Literal["auto", "off"] = "auto",
    ) -> None:
        """Prepare; nothing is captured yet.

        Args:
            compute: The iteration: launches on `device` alone, no waiting for it.
            learners: Whose optimizers it steps.
            device: Where it runs.
            mode: "off" for ordinary iterations.
        """
        self._compute = compute
        self._learners = learners
        self._device = device
        self.reason: str | None = None
        if mode == "off":
            self.reason = "graph is off in the configuration"
        elif device.type != "cuda":
            self.reason = f"no CUDA graphs on {device.type}"
        self._stream: torch.cuda.Stream | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the graph: what it captured (masks, tables) is no longer so."""
        self._ordinary = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._losses: _Losses | None = None

    def run(self, inputs: IterationInputs) -> _Losses:
        """One iteration; the losses are valid until the next one."""
        if self.reason is not None:
            return self._compute(inputs)
        if self._graph is None and self._ordinary >= WARM_UP:
            self._try_to_capture(inputs)
        if self._graph is None or self._losses is None:
            self._ordinary += 1
            return self._compute_aside(inputs)
        for fixed, value in zip(self._inputs, inputs.tensors(), strict=True):
            fixed.copy_(value)
        self._graph.replay()
        return self._losses

    def _compute_aside(self, inputs: IterationInputs) -> _Losses:
        """An ordinary iteration, on the stream of the capture.

        Autograd keeps to the stream on which it first met a parameter.
        """
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            losses = self._compute(inputs)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return losses

    def _try_to_capture(self, inputs: IterationInputs) -> None:
        kept = [_HostState(learner) for learner in self._learners]
        graph = torch.cuda.CUDAGraph()
        fixed = [tensor.clone() for tensor in inputs.tensors()]
        try:
            for learner in self._learners:
                learner.keep_learning_rate_on(self._device)
            with torch.cuda.graph(graph, stream=self._stream):
                losses = self._compute(IterationInputs.of(fixed))
        except RuntimeError as error:
            for state in kept:
                state.restore()
            self.reason = f"the iteration cannot be captured: {str(error).splitlines()[0]}"
            warnings.warn(f"no CUDA graph: {self.reason}", stacklevel=3)
            return
        self._graph, self._inputs, self._losses = graph, fixed, losses


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
