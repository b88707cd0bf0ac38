"""The step as torch.compile sees it: one operator over parameters and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from pecker_fast.backends.operators import define
from pecker_fast.backends.work import Hyperparameters, look

__all__ = ["SCHEMA", "TracedStep"]

# `params` are the optimizer's, at `places` among all of its parameters, with their gradients.
# `tensors` are lr, beta1 and beta2 of each group, where they are tensors. Masks and moments are
# found through `optimizer`, as `_live` numbers them: torch checks every tensor that an operator
# takes at every call, and these are thousands which nothing else in a graph reads.
SCHEMA = (
    "(Tensor(a!)[] params, Tensor(b!)[] grads, int[] places, int optimizer, Tensor?[] tensors, "
    "Tensor? grad_scale, Tensor? found_inf) -> ()"
)

_TENSORS = 3  # of `tensors`, for each group
_live: WeakValueDictionary[int, TracedStep] = WeakValueDictionary()


class TracedStep(Optimizer):
    """An optimizer whose step can be traced."""

    def _batches(self) -> Any:
        """Complete the state of all parameters."""
        raise NotImplementedError

    def _step(
        self,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        grad_of: Callable[[Tensor], Tensor | None] | None = None,
        groups: list[Hyperparameters] | None = None,
    ) -> None:
        """Step, with these gradients and hyperparameters in place of the optimizer's own."""
        raise NotImplementedError

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        places: list[int],
        optimizer: list[int],
    ) -> None:
        """Collect what the operator takes of a group's parameters that have gradients.

        Torch's tracer knows this name: it calls the method itself, once, on the real tensors,
        finds out where the tensors in the lists come from, and compiles anew when those are others.
        """
        self._batches()
        _live[id(self)] = self
        optimizer.append(id(self))
        place = 0
        for other in self.param_groups:
            for param in other["params"]:
                if other is group and param.grad is not None:
                    params.append(param)
                    grads.append(param.grad)
                    places.append(place)
                place += 1

    def _traced_step(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        columns: tuple[list[Any], ...] = ([], [], [], [])  # params, grads, places, optimizer
        tensors: list[Tensor | None] = []
        for group in self.param_groups:
            own: tuple[list[Any], ...] = ([], [], [], [])
            self._init_group(group, *own)
            for column, more in zip(columns, own, strict=True):
                column.extend(more)
            for value in (group["lr"], *group["betas"]):
                tensors.append(value if isinstance(value, Tensor) else None)
        params, grads, places, optimizer = columns
        if params:
            torch.ops.pecker_fast.masked_adamw(
                params, grads, places, optimizer[0], tensors, grad_scale, found_inf
            )


@torch.no_grad()
def _masked_adamw(
    params: list[Tensor],
    grads: list[Tensor],
    places: list[int],
    optimizer: int,
    tensors: list[Tensor | None],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    owner = _live[optimizer]
    every = [param for group in owner.param_groups for param in group["params"]]
    own = [every[place] for place in places]
    # A compiler may hand over copies, which it writes back itself.
    addresses = look([*own, *params])[0].reshape(2, -1)
    copies = [(own[i], params[i]) for i in np.flatnonzero(addresses[0] != addresses[1])]
    for mine, given in copies:
        mine.copy_(given)
    groups = [
        _hyperparameters(group, tensors[number * _TENSORS : (number + 1) * _TENSORS])
        for number, group in enumerate(owner.param_groups)
    ]
    grad_of = dict(zip(map(id, own), grads, strict=True))  # a tensor's own hash is Python
    owner._step(grad_scale, found_inf, lambda param: grad_of.get(id(param)), groups)
    for mine, given in copies:
        given.copy_(mine)


def _hyperparameters(group: dict[str, Any], tensors: Sequence[Tensor | None]) -> Hyperparameters:
    own = (group["lr"], *group["betas"])
    lr, *betas = (
        number if tensor is None else tensor for number, tensor in zip(own, tensors, strict=True)
    )
    return Hyperparameters.of({**group, "lr": lr, "betas": betas})


define("masked_adamw", SCHEMA, _masked_adamw)
