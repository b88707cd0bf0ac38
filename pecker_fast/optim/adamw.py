"""MaskedAdamW: groups, state, checkpoints and hooks. The maths is one backend call a step.

`MaskedAdamW` with mask M does to `p[M]` what `torch.optim.AdamW` does to a dense tensor holding
`p[M]`, and leaves `p[~M]` bit-identical, with no state. With no mask it *is* `torch.optim.AdamW`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from pecker_fast import backends
from pecker_fast.backends.work import Hyperparameters
from pecker_fast.errors import PeckerError
from pecker_fast.optim.checkpoint import SavedOptimizer
from pecker_fast.optim.prepared import Batch, Prepared, named_params
from pecker_fast.optim.released import ReleasedGrads, ReleasingOptimizer, untraced
from pecker_fast.optim.replaced import follow
from pecker_fast.optim.resolve import MaskLike, ResolvedMask, resolve_mask
from pecker_fast.optim.sharded import Share, is_sharded, local_tensor
from pecker_fast.optim.state import (
    ParamState,
    carry_state,
    check_group,
    check_param,
    grow_state,
    init_state,
    refuse_fused_on_meta,
    users_entries,
)
from pecker_fast.optim.traced import TracedStep

if TYPE_CHECKING:
    from pecker_fast.optim.delta import Delta

__all__ = ["MaskedAdamW"]


class MaskedAdamW(TracedStep, SavedOptimizer, ReleasingOptimizer):
    """AdamW on the salient entries of each parameter; a drop-in for torch.optim.AdamW.

    Args:
        params: tensors, groups, or named parameters (`model.named_parameters()`).
        lr: learning rate, a float or a one-element tensor, of either kind at any time.
        betas: coefficients of the running averages, both floats or both one-element tensors. With
            beta1 = 0, as a float, no exp_avg is kept.
        eps: added to the denominator, after the bias correction.
        weight_decay: decoupled; salient entries only.
        amsgrad: use the maximum of all second moments so far.
        mask: which entries may change. A SaliencyMask, or a mapping from name or parameter to a
            bool tensor; names need named parameters, others `mask.bound(model)`. None: all of them.
        maximize: ascend instead of descend.
        capturable: keep `step` on the parameter's device, in checkpoints too.
        differentiable: refused.
        foreach, fused: accepted for compatibility: the step always is fused. With fused=False a
            GradScaler unscales all gradients before it, for loops that clip in between (Lightning).
        master_weights: keep float32 copies of the salient entries of bfloat16 and float16
            parameters. None: with a mask.
        release_grads: keep only the salient gradients: a hook frees each dense gradient during
            the backward pass. `step` uses them up; `p.grad` is None throughout.
        clip_value: clamp each gradient entry to [-clip_value, clip_value] before use, without
            changing `p.grad`. NaN stays NaN. Like every hyperparameter, may differ by group.
        backend: "auto" or a name of `pecker_fast.backends.available()`.

    State per parameter, from construction for parameters that require a gradient (from the first
    gradient for others): see `state.init_state`. State keeps C order of the positions.

    On a GPU a step never waits for the device and can be captured in a CUDA graph, after one
    ordinary step. A graph follows `lr` and `betas` that are tensors on the device; other
    hyperparameters, the mask and the state are those of the capture: after `set_mask` or
    `load_state_dict` it goes on with the old ones, so capture anew and call `forget_captures`.

    Code compiled by torch.compile calls the operator `pecker_fast::masked_adamw`, without a graph
    break. A number that changes (an `lr` that is a float) compiles anew, as with torch's: use a
    tensor. With release_grads or sharded parameters the step runs between what is compiled.

    Parameters may be sharded by `fully_shard` (FSDP2): each process keeps the state of the salient
    entries that it holds. Masks are given whole. With a mask, making the optimizer, `set_mask` and
    `state_dict` are then collective, `clip_grad_norm_` too.

    With a GradScaler, unscaled gradients are written back to the entries of `p.grad` that are
    read: the salient ones under a mask.

    Raises:
        PeckerError: a hyperparameter out of range, or a mask that does not fit (see
            `resolve.resolve_mask`). Where torch raises a RuntimeError or TypeError it is one, too.
    """

    # While load_state_dict runs: the dict with its tensors as saved.
    # Work that holds until parameters, state or mask change; None: to be made at the next step.
    _prepared: Prepared | None = None
    # Former such work that captured graphs go on reading.
    _captured: tuple[Prepared, ...] = ()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        mask: MaskLike | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        master_weights: bool | None = None,
        release_grads: bool = False,
        clip_value: float | None = None,
        backend: str = "auto",
    ) -> None:
        if release_grads and mask is None:
            raise PeckerError(
                "release_grads=True needs a mask: without one every gradient entry is needed; "
                "pass mask=SaliencyMask.full(model) to release the gradients of a dense step"
            )
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": True,  # torch's Adam asks for it when it loads our state
            "clip_value": clip_value,
            "mask_digest": None,
            "carried": 0,  # what `complete_checkpoint` counts, where a checkpoint is made
        }
        super().__init__(params, defaults)
        self._backend_name = backend
        self._master_weights = master_weights
        # Salient positions of the local part of each parameter; empty without a mask. Not in
        # `state`: load_state_dict would cast them to the parameter's dtype.
        self._indices: dict[Tensor, Tensor] = {}
        self._places: list[list[Tensor]] = []  # the parameters that these are for, by group
        # Sharded parameter -> which slots of the whole compact state are held here.
        self._shares: dict[Tensor, Share] = {}
        self._released = ReleasedGrads(backend) if release_grads else None
        self._attach(0, mask)
        self._constructed = True

    # ---- groups and masks

    def add_param_group(self, param_group: dict[str, Any], mask: MaskLike | None = None) -> None:
        """Add a group, as torch does.

        Args:
            param_group: "params" and any hyperparameters that differ from the defaults.
            mask: for the new group's parameters. Required exactly if the optimizer has a mask.

        Raises:
            PeckerError: the group or its mask is not acceptable; nothing was added.
        """
        if self._constructed and (mask is None) != (not self._indices):
            raise PeckerError(
                "the optimizer has a mask: give the new group one, add_param_group(group, mask=...)"
                if mask is None
                else "the optimizer has no mask, so a new group cannot have one: use set_mask"
            )
        super().add_param_group(param_group)
        if self._constructed:  # else the constructor attaches all groups at once
            try:
                self._attach(len(self.param_groups) - 1, mask)
            except PeckerError:
                self.param_groups.pop()
                raise

    @untraced
    def set_mask(self, mask: MaskLike | None, moments: Literal["reset", "carry"] = "reset") -> None:
        """Replace the mask, between two steps.

        Args:
            mask: as in the constructor, for all groups.
            moments: "reset" starts every entry anew. "carry" keeps the moments of entries that
                stay salient; newly salient ones start with zero moments and a bias correction
                of their own. Low-precision masters of new entries start from the parameter.

        Raises:
            PeckerError: the mask does not fit, released gradients are waiting for a step, or
                "carry" without a mask.
        """
        if moments not in ("reset", "carry"):
            raise PeckerError(f"moments must be 'reset' or 'carry', got {moments!r}")
        if mask is None and (moments == "carry" or self._released is not None):
            raise PeckerError(
                "moments='carry' and release_grads need a mask: use SaliencyMask.full(model)"
            )
        if self._released:
            raise PeckerError(
                "released gradients of the old mask are waiting: call step() or zero_grad() "
                "before set_mask"
            )
        self._follow()
        resolved = ResolvedMask() if mask is None else resolve_mask(mask, self.param_groups)
        if moments == "carry":
            self._batches()  # refuses options that ask for moments whose history is lost
        old_indices, self._indices, self._shares = self._indices, {}, {}
        self._take(resolved, self.param_groups)
        for _, _, group, param in named_params(self.param_groups):
            old = self.state.get(param)
            if old:
                state = self._start(param, group)
                state.update(users_entries(old))
                if moments == "carry":
                    carry_state(state, self._indices[param], old, old_indices.get(param))
        self._outdate()

    def delta(self, model: nn.Module | None = None) -> Delta:
        """The values that steps under this mask can have changed, for `apply_delta`.

        Collective where parameters are sharded: every process gets the whole. Nothing waits for
        the device but the first call under a mask, which hashes its positions.

        Args:
            model: whose names the parameters have, where the optimizer was given none.

        Raises:
            PeckerError: parameters without names.
        """
        from pecker_fast.optim.delta import delta_of, names_of

        self._follow()
        named = names_of(self.param_groups, model)
        return delta_of(named, self._indices, self._shares, self._backend_name, self._mask_digests)

    def forget_captures(self) -> None:
        """Free what CUDA graphs captured before `set_mask` or `load_state_dict` read.

        They keep masks and state of their own alive, so that replaying them harms nothing. Call it
        when they are gone; replaying one afterwards writes into freed memory.
        """
        self._captured = ()

    def _outdate(self) -> None:
        """The prepared work no longer holds."""
        if self._prepared is not None and self._prepared.captured:
            self._captured += (self._prepared,)
        self._prepared = None
        self._traceable = self._released is None and not any(
            is_sharded(param) for group in self.param_groups for param in group["params"]
        )

    @property
    def backend(self) -> str:
        """The backend in use, by name; several joined by "+" where devices differ."""
        return "+".join(sorted({backends.name_of(batch.backend) for batch in self._batches()}))

    def _attach(self, first_group: int, mask: MaskLike | None) -> None:
        """Check the groups from `first_group` on, give them their mask and their first state."""
        groups = self.param_groups[first_group:]
        for number, group in enumerate(groups, first_group):
            check_group(group, number)
        for device in {param.device for group in groups for param in group["params"]}:
            backends.select(self._backend_name, device)  # refuse a wrong one now, not at a step
        resolved = ResolvedMask() if mask is None else resolve_mask(mask, groups, first_group)
        self._take(resolved, groups)
        self._places += [list(group["params"]) for group in groups]
        for _, _, group, param in named_params(groups):
            if param.requires_grad and param not in self.state:
                self._start(param, group)
        self._outdate()

    def _take(self, resolved: ResolvedMask, groups: list[dict[str, Any]]) -> None:
        self._indices.update(resolved.indices)
        self._shares.update(resolved.shares)
        self._mask_digests: dict[tuple[str, ...], str] = {}  # what `delta` has hashed, by names
        for number, group in enumerate(groups):
            group["mask_digest"] = resolved.digests[number] if resolved.digests else None

    def _follow(self) -> None:
        """Masks and states go with parameters that a loop has put in the place of others."""
        held = self._places, self._indices, self._shares, self.state
        gone = follow(self.param_groups, *held, self._start)
        if gone:
            self._outdate()
        if self._released is not None:
            self._released.unwatch(gone)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the salient entries of every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # GradScaler sets these two around the call.
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if self._traceable and torch.compiler.is_compiling():
            self._traced_step(grad_scale, found_inf)
        else:
            self._step(grad_scale, found_inf)
        return loss

    @untraced
    def _step(
        self,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        grad_of: Callable[[Tensor], Tensor | None] | None = None,
        groups: list[Hyperparameters] | None = None,
    ) -> None:
        batches = self._batches()
        if groups is None:
            groups = [Hyperparameters.of(group) for group in self.param_groups]
        if self._released is not None:
            grad_of = self._released.take
        for batch in batches:
            if batch.device.type == "meta":
                refuse_fused_on_meta(self.param_groups)
            batch.step(grad_of, groups, grad_scale, found_inf)
        if self._released is not None:
            self._released.clear()

    def _batches(self) -> tuple[Batch, ...]:
        """The batches of this step, made anew if parameters, state or options are not as before."""
        if self._prepared is None or not self._prepared.is_current(self.param_groups, self.state):
            self._follow()
            for label, _, group, param in named_params(self.param_groups):
                if self.state.get(param):
                    indices = self._indices.get(param)
                    grow_state(label, self.state[param], local_tensor(param), indices, group)
                elif param.grad is not None or param.requires_grad:
                    check_param(label, param)
                    self._start(param, group)
            self._outdate()
            self._prepared = Prepared.of(
                self.param_groups,
                self.state,
                self._indices,
                self._backend_name,
                compact_grads=self._released is not None,
            )
        return self._prepared.batches

    def _start(self, param: Tensor, group: dict[str, Any]) -> ParamState:
        """Give a parameter its first state, and its hook where gradients are released."""
        state = self._new_state(param, group)
        self.state[param] = state
        if self._released is not None:
            self._released.watch(param, self._indices[param])
        return state

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> ParamState:
        master = bool(self._indices) if self._master_weights is None else self._master_weights
        return init_state(local_tensor(param), self._indices.get(param), group, master)
