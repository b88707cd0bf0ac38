"""The step as torch.compile sees it: one operator over lists of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pecker_fast.backends.operators import KEPT, flat_hyperparameters
from pecker_fast.optim.state import ParamState

__all__ = ["TracedStep"]

_COLUMNS = 9  # lists of the operator with an item for each parameter
_OPTIONAL = (2, 4, 5)  # exp_avgs, max_exp_avg_sqs, masters


class TracedStep(Optimizer):
    """An optimizer whose step can be traced."""

    _backend_name: str
    _indices: dict[Tensor, Tensor]

    def _batches(self) -> Any:
        """Complete the state of all parameters."""
        raise NotImplementedError

    def _init_group(self, group: dict[str, Any], *columns: list[Tensor | None]) -> None:
        """Collect what the operator takes of a group's parameters that have gradients.

        Torch's tracer knows this name: it calls the method itself, once, on the real tensors,
        finds out where the tensors in the lists come from, and compiles anew when those are others.
        """
        self._batches()
        for param in group["params"]:
            if param.grad is None:
                continue
            state: ParamState = self.state[param]
            row = (
                param,
                param.grad,
                state.get("exp_avg"),
                state["exp_avg_sq"],
                state.get("max_exp_avg_sq"),
                state.get("master"),
                state.get("entry_start"),
                state["step"],
                self._indices.get(param),
            )
            for column, value in zip(columns, row, strict=True):
                column.append(value)

    def _traced_step(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        columns: list[list[Any]] = [[] for _ in range(_COLUMNS)]
        groups: list[int] = []
        numbers: list[float] = []
        tensors: list[Tensor | None] = []
        for number, group in enumerate(self.param_groups):
            own: list[list[Any]] = [[] for _ in range(_COLUMNS)]
            self._init_group(group, *own)
            for column, more in zip(columns, own, strict=True):
                column.extend(more)
            groups.extend([number] * len(own[0]))
            own_numbers, own_tensors = flat_hyperparameters(group)
            numbers.extend(own_numbers)
            tensors.extend(own_tensors)
        if not groups:
            return
        kept = [0] * len(groups)
        for kind, place in zip(KEPT, _OPTIONAL, strict=True):
            present = [tensor is not None for tensor in columns[place]]
            kept = [bits + kind * int(one) for bits, one in zip(kept, present, strict=True)]
            columns[place] = [tensor for tensor in columns[place] if tensor is not None]
        torch.ops.pecker_fast.masked_adamw(
            *columns, kept, groups, numbers, tensors, grad_scale, found_inf,
            backend=self._backend_name,
        )  # fmt: skip
