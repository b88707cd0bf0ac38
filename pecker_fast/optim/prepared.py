"""Between MaskedAdamW and its backends: entries per device, and gradients that were released."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from pecker_fast import backends
from pecker_fast.backends.work import Entry, Hyperparameters, Work
from pecker_fast.errors import PeckerError
from pecker_fast.optim.resolve import param_label
from pecker_fast.optim.sharded import (
    is_sharded,
    local_grad,
    local_tensor,
    norm_over_shards,
    refuse_data_parallel,
    sharding,
)
from pecker_fast.optim.state import ParamState, make_entry, moment_names

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["Batch", "Prepared", "ReleasedGrads", "named_params", "untraced"]

# Backends take addresses, which tensors do not have while they are traced: torch.compile is to run
# what is marked so as it is. torch.optim marks its own methods likewise; `torch.compiler.disable`
# would import the compiler at once, for seconds.
untraced = _disable_dynamo


def named_params(
    groups: list[dict[str, Any]],
) -> Iterator[tuple[str, int, dict[str, Any], Tensor]]:
    """(label for messages, group number, group, parameter) of every parameter."""
    for number, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            yield param_label(group, number, index), number, group, param


@dataclass(frozen=True)
class Batch:
    """The parameters of one device, prepared for its backend."""

    device: torch.device
    backend: backends.Backend
    work: Work
    params: list[Tensor]  # of the work's entries
    any_sharded: bool

    def _grads(self) -> list[Tensor | None]:
        """What this process holds of every parameter's gradient."""
        grads = [param.grad for param in self.params]
        if self.any_sharded:
            return [
                grad if grad is None or not is_sharded(param) else local_grad(param, grad)
                for param, grad in zip(self.params, grads, strict=True)
            ]
        return grads

    def step(
        self,
        released: ReleasedGrads | None,
        groups: list[Hyperparameters],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """One call of the backend; see `backends.reference.masked_adamw_`.

        Raises:
            PeckerError: a gradient is sparse, or not placed as its sharded parameter.
        """
        if released is None:
            grads = self._grads()
        else:
            grads = [released.take(param) for param in self.params]
        try:
            self.backend.masked_adamw_(self.work, grads, groups, grad_scale, found_inf)
        except RuntimeError:  # what torch raises when a sparse tensor is asked for its layout
            self._refuse_sparse()
            raise

    def _refuse_sparse(self) -> None:
        for entry, param in zip(self.work.entries, self.params, strict=True):
            grad = param.grad
            if grad is not None and grad.layout is not torch.strided:
                raise PeckerError(
                    f"the gradient of {entry.name!r} is sparse ({grad.layout}): expected a dense "
                    "one; make it dense, or use torch.optim.SparseAdam"
                )


@dataclass(frozen=True)
class Prepared:
    """The batches of a step and what they were made for."""

    batches: tuple[Batch, ...]
    moments: list[frozenset[str]]  # which moments each group's options asked for
    stateless: list[Tensor]  # parameters that have had no gradient and need none
    made_from: _Snapshot

    @classmethod
    def of(
        cls,
        groups: list[dict[str, Any]],
        state: MutableMapping[Tensor, ParamState],
        indices: Mapping[Tensor, Tensor],
        backend_name: str,
        compact_grads: bool,
    ) -> Prepared:
        """Prepare every parameter that has state.

        All step counts of a device move into one tensor, of which `state` then holds views:
        advancing them is one operation instead of one per parameter.

        Args:
            groups: the optimizer's groups.
            state: its state.
            indices: parameter -> (nnz,) int32 salient positions; empty without a mask.
            backend_name: as `backends.select` takes it.
            compact_grads: gradients will come as (nnz,) tensors.

        Raises:
            PeckerError: a parameter is not on the device of its state.
        """
        by_device: dict[torch.device, list[tuple[Tensor, Entry]]] = defaultdict(list)
        for label, number, _, param in named_params(groups):
            if state.get(param):
                _check_device(label, param, state[param])
                local = local_tensor(param)
                entry = make_entry(label, local, number, indices.get(param), state[param])
                by_device[param.device].append((param, entry))

        batches = []
        for device, found in by_device.items():
            backend = backends.select(backend_name, device)
            owners, entries = [param for param, _ in found], [entry for _, entry in found]
            states = [state[param] for param in owners]
            first = states[0]["step"]
            steps = torch.stack([s["step"].to(first.device) for s in states]).float()
            steps = steps.to(device if backend.STEPS_ON_DEVICE else first.device)
            for param_state, step in zip(states, steps.unbind(), strict=True):
                param_state["step"] = step
            work = backend.prepare(entries, steps, compact_grads=compact_grads)
            batches.append(Batch(device, backend, work, owners, any(map(is_sharded, owners))))
        params = [param for _, _, _, param in named_params(groups)]
        return cls(
            batches=tuple(batches),
            moments=[moment_names(group) for group in groups],
            stateless=[param for param in params if not state.get(param)],
            made_from=_Snapshot(params, list(state.values())),
        )

    def is_current(self, groups: list[dict[str, Any]], state: Mapping[Tensor, ParamState]) -> bool:
        """Whether parameters, state and the groups' options are as they were."""
        return (
            self.moments == [moment_names(group) for group in groups]
            and all(param.grad is None for param in self.stateless)
            and self.made_from.is_still(groups, list(state.values()))
        )


class _Snapshot:
    """Which tensors a preparation holds addresses of. At C speed: 329 parameters in 0.1 ms."""

    def __init__(self, params: list[Tensor], states: list[ParamState]) -> None:
        # What is held here cannot be freed, so its address cannot come again.
        self._params, self._states = params, states
        self._tensors = list(chain.from_iterable(map(dict.values, states)))
        self._aliases = [tensor.detach() for tensor in self._tensors]
        self._any_sharded = any(map(is_sharded, params))
        held = self._held()
        self._contiguous = list(map(Tensor.is_contiguous, held))
        self._second_moments = [state["exp_avg_sq"] for state in states if state]
        self._addresses = self._find(held)

    def _held(self) -> list[Tensor]:
        # FSDP replaces local tensors without replacing the parameters.
        return list(map(local_tensor, self._params)) if self._any_sharded else self._params

    def _find(self, held: list[Tensor]) -> list[int]:
        # Whoever moves state in place moves all of it.
        return list(map(Tensor.data_ptr, chain(held, self._second_moments)))

    def is_still(self, groups: list[dict[str, Any]], states: list[ParamState]) -> bool:
        """Whether these hold the same tensors, at the same places."""
        if not _same_objects([group["params"] for group in groups], self._params):
            return False
        held = self._held()
        return (
            _same_objects([states], self._states)
            and _same_objects(states, self._tensors)
            and self._find(held) == self._addresses
            and all(map(Tensor.is_contiguous, compress(held, self._contiguous)))
        )


def _same_objects(containers: list[Any], objects: list[Any]) -> bool:
    """Whether the values of lists and dicts, one after the other, are these very objects."""
    values = chain.from_iterable(c.values() if isinstance(c, dict) else c for c in containers)
    return list(map(id, values)) == list(map(id, objects))


try:
    from pecker_fast._C import same_objects as _same_objects
except ImportError:  # not built: the one above
    pass


def _check_device(label: str, param: Tensor, state: ParamState) -> None:
    device = state["exp_avg_sq"].device
    if device != param.device:
        raise PeckerError(
            f"{label!r} is on {param.device}, its state on {device}: move the model before the "
            "optimizer is made, or load the optimizer's state_dict after the move"
        )


class ReleasedGrads:
    """Salient gradients whose dense originals were freed during the backward pass.

    Args:
        backend_name: as `backends.select` takes it.
    """

    def __init__(self, backend_name: str) -> None:
        self._backend_name = backend_name
        self._grads: dict[Tensor, Tensor] = {}
        self._indices: dict[Tensor, Tensor] = {}
        self._hooks: dict[Tensor, RemovableHandle] = {}
        self._places: Mapping[Tensor, Tensor] = {}
        self._on_release: Callable[[Tensor], None] | None = None
        self._checked = False  # that nobody else wants the dense gradients

    def keep_in(
        self, places: Mapping[Tensor, Tensor], on_release: Callable[[Tensor], None] | None
    ) -> None:
        """Keep gradients in these tensors, of (nnz,) each, instead of in new ones.

        Args:
            places: parameter -> where its salient gradient goes. Nothing else may write there.
            on_release: called with a parameter whenever a gradient of it has been added there.
        """
        self._places, self._on_release = places, on_release

    def has(self, param: Tensor) -> bool:
        """Whether a gradient of this parameter waits for a step."""
        return param in self._grads

    def adopt(self, param: Tensor) -> None:
        """Take what lies in this parameter's place for its gradient: others have put it there."""
        self._grads[param] = self._places[param]

    def watch(self, param: Tensor, indices: Tensor) -> None:
        """Release this parameter's gradients from now on, keeping those at `indices`.

        Args:
            param: the parameter.
            indices: (nnz,) int32 salient positions; of a sharded parameter, in its local tensor.
        """
        self._indices[param] = indices
        if param in self._hooks or not param.requires_grad:
            return
        this = weakref.ref(self)

        @untraced
        def release(accumulated: Tensor) -> None:
            grads = this()
            if grads is not None:  # else the optimizer is gone and the gradient stays
                grads.take(accumulated)

        hook: Any = param.register_post_accumulate_grad_hook  # untyped in torch
        self._hooks[param] = hook(release)

    def take(self, param: Tensor) -> Tensor | None:
        """The parameter's salient gradient; a dense one is added to it and freed first.

        Returns:
            (nnz,) float32, float64 for a float64 parameter; None if there was no gradient.

        Raises:
            PeckerError: DistributedDataParallel wants the dense gradient, at the first one.
        """
        dense, kept = param.grad, self._grads.get(param)
        if dense is None:
            return kept
        if is_sharded(param):
            dense = local_grad(param, dense)
            if dense.is_cuda:  # FSDP allocated it on another stream than this hook's
                dense.record_stream(torch.cuda.current_stream(dense.device))
        indices = self._indices[param]
        if kept is None:
            if not self._checked:
                refuse_data_parallel(param)
                self._checked = True
            dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
            place = self._places.get(param)
            if place is None:
                kept = torch.zeros(indices.numel(), dtype=dtype, device=param.device)
            else:
                kept = place.zero_()
            self._grads[param] = kept
        backend = backends.select(self._backend_name, param.device)
        backend.gather_salient_([dense], [indices], [kept], accumulate=True)
        param.grad = None
        if self._on_release is not None:
            self._on_release(param)
        return kept

    def clear(self) -> None:
        """Forget all gradients."""
        self._grads.clear()

    def zero_(self) -> None:
        """Make all gradients zero, so that the next step still counts them."""
        for grad in self._grads.values():
            grad.zero_()

    def __len__(self) -> int:
        return len(self._grads)

    def clip_norm_(self, max_norm: float) -> Tensor:
        """Scale all gradients so that their total 2-norm is at most `max_norm`.

        Collective where parameters are sharded.

        Returns:
            () the total norm before.
        """
        grads = list(self._grads.values())
        if not grads:
            return torch.tensor(0.0)
        by_kind: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for param, grad in self._grads.items():
            by_kind[(grad.device, grad.dtype, *sharding(param))].append(param)
        norms = []
        for (device, *_), params in by_kind.items():
            backend = backends.select(self._backend_name, device)
            norm, _ = backend.norm_salient([self._grads[param] for param in params])
            norms.append(norm_over_shards(norm, params[0]).to(grads[0].device))
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms)).to(grads[0].dtype)
        scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)  # as torch's clip_grad_norm_
        for grad in grads:
            grad.mul_(scale.to(grad))
        return total

    def __getstate__(self) -> dict[str, Any]:
        # Hooks belong to live parameters: __setstate__ sets them on the copies.
        # The places and whoever is told belong to the original.
        return {**self.__dict__, "_hooks": {}, "_places": {}, "_on_release": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for param, indices in self._indices.items():
            self.watch(param, indices)
