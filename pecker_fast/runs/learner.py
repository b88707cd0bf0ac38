"""A network that learns: its optimizer, its mask, its learning rate, and when it may move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pecker_fast.distributed import GradientReducer, Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.nn.skipping import skip_frozen_
from pecker_fast.optim.adamw import MaskedAdamW
from pecker_fast.runs.config import OptimizerSection

__all__ = ["Learner", "MakeOptimizer", "masked_adamw"]

MakeOptimizer: TypeAlias = Callable[[nn.Module, SaliencyMask | None, float], Optimizer]
"""(network, mask or None for a dense update, learning rate) -> optimizer of that network."""


def masked_adamw(options: OptimizerSection) -> MakeOptimizer:
    """The default optimizer: `MaskedAdamW` with the configuration's constants."""

    def make(network: nn.Module, mask: SaliencyMask | None, lr: float) -> Optimizer:
        return MaskedAdamW(
            [(name, p) for name, p in network.named_parameters() if p.requires_grad],
            lr=lr,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
            mask=mask,
            master_weights=True,  # concerns bf16 weights only
            # A dense update needs every gradient entry: there is nothing to release.
            release_grads=options.release_grads and mask is not None,
            clip_value=options.clip_value,
            backend=options.backend,
        )

    return make


class Learner:
    """A network with its optimizer. Between its phases it rests: eval mode, no gradients.

    Attributes:
        optimizer: The optimizer.
    """

    def __init__(
        self,
        network: nn.Module,
        mask: SaliencyMask | None,
        lr: float,
        make_optimizer: MakeOptimizer,
        *,
        clip_norm: float | None = None,
        backend: str = "auto",
        ranks: Ranks | None = None,
    ) -> None:
        """Make the optimizer and let the network rest.

        Where the mask leaves whole rows of a weight frozen, their gradient is not computed.

        Args:
            network: Its parameters that require a gradient now are the ones that may learn.
            mask: Which entries may change. None = all.
            lr: Learning rate at the first iteration.
            make_optimizer: Builds the optimizer.
            clip_norm: Most that the norm over all entries may be, frozen rows included.
            backend: As for the optimizer, for what is sent between processes.
            ranks: The processes whose gradients are added up before a step.
        """
        self._network = network
        self._trainable = {n: p for n, p in network.named_parameters() if p.requires_grad}
        if not self._trainable:
            raise PeckerError(f"{type(network).__name__} has no parameter that requires a gradient")
        self.optimizer = make_optimizer(network, mask, lr)
        self._mask = mask if clip_norm is None else None
        skip_frozen_(network, self._mask)
        self._clip_norm = clip_norm
        self._backend = backend
        self._factor: float | None = 1.0  # of the learning rates; None = unknown
        self._ranks = ranks or Ranks()
        self._reducer: GradientReducer | None = None
        # Group by group: an injected optimizer may have rates of its own.
        self._base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.rest()

    def learn(self) -> None:
        """Train mode; gradients for the parameters that have a salient entry."""
        self._network.train()
        for name, param in self._trainable.items():
            # A parameter that is frozen as a whole needs no weight gradient: exact, and cheaper.
            param.requires_grad_(self._mask is None or len(self._mask.indices[name]) > 0)
        if self._reducer is None and not self._ranks.alone:
            self._reducer = GradientReducer(
                {name: p for name, p in self._trainable.items() if p.requires_grad},
                self._mask,
                self._ranks,
                optimizer=self.optimizer,
                backend=self._backend,
            )

    def before_last_backward(self) -> None:
        """The next backward pass is the last before `step`: it may send gradients."""
        if self._reducer is not None:
            self._reducer.before_last_backward()

    def rest(self) -> None:
        """Eval mode; no parameter asks for a gradient."""
        self._network.eval()
        self._network.requires_grad_(False)

    def open_for_scores(self) -> None:
        """Eval mode; every trainable parameter asks for a gradient, frozen ones included."""
        self._network.eval()
        skip_frozen_(self._network, None)
        for param in self._trainable.values():
            param.requires_grad_(True)

    def set_learning_rate(self, factor: float) -> None:
        """The first learning rate times this, for the steps that follow."""
        if factor == self._factor:
            return
        self._factor = factor
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * factor)
            else:
                group["lr"] = lr * factor

    def keep_learning_rate_on(self, device: torch.device) -> None:
        """From now on the learning rate is a tensor there, which a captured graph reads anew.

        In float64: the same bits as a Python number gives.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float64, device=device)

    def keep_learning_rate_on_host(self) -> None:
        """The learning rate is a Python number again."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"])

    def step(self) -> None:
        """One optimizer step, by the sum of all processes' gradients; drops the gradients."""
        if self._reducer is not None:
            self._reducer.finish()
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trainable.values(), self._clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def masters(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        """Salient positions (None: all) and fp32 masters of the low-precision parameters."""
        found: dict[str, tuple[Tensor | None, Tensor]] = {}
        for name, param in self._trainable.items():
            master = self.optimizer.state.get(param, {}).get("master")
            if master is not None:
                indices = None if self._mask is None else self._mask.indices[name]
                found[name] = indices, master
        return found

    @torch.no_grad()
    def refine_masters(self, original: Mapping[str, Tensor]) -> None:
        """Give masters that are a rounded entry of `original`, by name, what the rounding took."""
        for name, (positions, master) in self.masters().items():
            precise = original[name].detach()
            if positions is not None:
                precise = precise.reshape(-1)[positions.long().to(precise.device)]
            precise = precise.to(master)
            rounded = precise.to(self._trainable[name].dtype).to(master)
            master.copy_(torch.where(master == rounded, precise, master))

    def set_mask(self, mask: SaliencyMask) -> None:
        """Change the mask between two steps; entries that stay salient keep their moments.

        Raises:
            PeckerError: The optimizer has no masks to change.
        """
        change = getattr(self.optimizer, "set_mask", None)
        if change is None:
            raise PeckerError(
                f"mask.refresh_every needs an optimizer with set_mask, got "
                f"{type(self.optimizer).__name__}; use MaskedAdamW or set it to 0"
            )
        if self._reducer is not None:  # of the old mask; `learn` makes one of the new
            self._reducer.close()
            self._reducer = None
        change(mask, moments="carry")
        skip_frozen_(self._network, mask)
        self._mask = mask

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's. Weights and mask are not in it."""
        state = self.optimizer.state_dict()
        groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over; the mask must be the one that it was saved under."""
        self.optimizer.load_state_dict(dict(state))
        self._factor = None
