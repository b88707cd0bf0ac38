"""Gradients that are released: only their salient entries live on after the backward pass."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from pecker_fast import backends
from pecker_fast.errors import PeckerError, PeckerRuntimeError
from pecker_fast.optim.sharded import (
    is_sharded,
    local_grad,
    norm_over_shards,
    refuse_data_parallel,
    sharding,
)

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["ReleasedGrads", "ReleasingOptimizer", "untraced"]

# Backends take addresses, which tensors do not have while they are traced: torch.compile is to run
# what is marked so as it is. torch.optim marks its own methods likewise; `torch.compiler.disable`
# would import the compiler at once, for seconds.
untraced = _disable_dynamo


class ReleasedGrads:
    """Salient gradients whose dense originals were freed during the backward pass.

    Args:
        backend_name: as `backends.select` takes it.
    """

    def __init__(self, backend_name: str) -> None:
        self._backend_name = backend_name
        # Choosing one asks for CUDA devices: too much for every parameter at every step.
        self._backends: dict[torch.device, backends.Backend] = {}
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

    def unwatch(self, params: Iterable[Tensor]) -> None:
        """Leave these parameters' gradients to others from now on."""
        for param in params:
            self._indices.pop(param, None)
            if hook := self._hooks.pop(param, None):
                hook.remove()

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
        first = kept is None
        if kept is None:
            if not self._checked:
                refuse_data_parallel(param)
                self._checked = True
            dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
            place = self._places.get(param)
            if place is None:
                kept = torch.empty(indices.numel(), dtype=dtype, device=param.device)
            else:
                kept = place
            self._grads[param] = kept
        self._backend(param.device).gather_salient_(
            [dense], [indices], [kept], accumulate=not first
        )
        param.grad = None
        if self._on_release is not None:
            self._on_release(param)
        return kept

    def clear(self) -> None:
        """Forget all gradients."""
        self._grads.clear()

    def zero_(self) -> None:
        """Make all gradients zero, so that the next step still counts them."""
        if self._grads:
            torch._foreach_zero_(list(self._grads.values()))

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
            norm, _ = self._backend(device).norm_salient([self._grads[param] for param in params])
            norms.append(norm_over_shards(norm, params[0]).to(grads[0].device))
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms)).to(grads[0].dtype)
        scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)  # as torch's clip_grad_norm_
        for params in by_kind.values():
            some = [self._grads[param] for param in params]
            torch._foreach_mul_(some, scale.to(some[0]))
        return total

    def _backend(self, device: torch.device) -> backends.Backend:
        if device not in self._backends:
            self._backends[device] = backends.select(self._backend_name, device)
        return self._backends[device]

    def __getstate__(self) -> dict[str, Any]:
        # Hooks belong to live parameters: __setstate__ sets them on the copies.
        # The places and whoever is told belong to the original, and modules are not pickled.
        kept: dict[str, Any] = {"_hooks": {}, "_places": {}, "_on_release": None, "_backends": {}}
        return {**self.__dict__, **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for param, indices in self._indices.items():
            self.watch(param, indices)


class ReleasingOptimizer(Optimizer):
    """An optimizer whose gradients may be released ones."""

    _released: ReleasedGrads | None

    @untraced
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, released ones included.

        Args:
            set_to_none: drop them; else make them zero, so that the next step still counts.
        """
        super().zero_grad(set_to_none)
        if self._released is not None:
            forget = self._released.clear if set_to_none else self._released.zero_
            forget()

    @untraced
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale the released gradients so that their total 2-norm is at most `max_norm`.

        The norm is over the salient entries: the others are gone. For dense gradients use
        torch.nn.utils.clip_grad_norm_, whose norm is over all entries.

        Returns:
            () the total norm before clipping.

        Raises:
            PeckerError: without release_grads.
        """
        if self._released is None:
            raise PeckerError(
                "clip_grad_norm_ works on released gradients only: pass release_grads=True, or "
                "use torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)"
            )
        return self._released.clip_norm_(max_norm)

    @property
    def releases_grads(self) -> bool:
        """Whether dense gradients are freed during the backward pass."""
        return self._released is not None

    def release_into(
        self, places: Mapping[Tensor, Tensor], on_release: Callable[[Tensor], None] | None
    ) -> ReleasedGrads:
        """Keep released gradients in the caller's memory, e.g. in what it sends to other processes.

        A copy of the optimizer keeps its own again. Returns what knows which gradients there are.

        Args:
            places: parameter -> (nnz,) float32, float64 for a float64 parameter. Others as before.
            on_release: called with a parameter, during the backward pass, whenever a gradient has
                been added in its place. None: nobody is told.

        Raises:
            PeckerError: without release_grads, or while released gradients wait for a step.
        """
        if self._released is None:
            raise PeckerError("release_into works on released gradients only: release_grads=True")
        if self._released:
            raise PeckerError(
                "released gradients are waiting: call step() or zero_grad() before release_into"
            )
        self._released.keep_in(places, on_release)
        return self._released

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells GradScaler to hand `grad_scale` and `found_inf` to `step` instead of unscaling."""
        if self._released is not None:
            raise PeckerRuntimeError(
                "release_grads=True does not work with a GradScaler, which must see the whole "
                "gradients to look for infinities: use bfloat16, or release_grads=False"
            )
        return self.defaults["fused"] is not False
