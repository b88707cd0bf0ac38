"""The exponential average of a network, kept for its salient entries only where there is a mask.

An average that starts at the initial weights never moves where the weights do not move, so the
frozen entries need none: leaving them out is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pecker_fast.backends import select
from pecker_fast.backends.layout import positions_on
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask

__all__ = ["FullEma", "SalientEma", "carry", "salient_positions", "slow_average"]


def salient_positions(network: nn.Module, mask: SaliencyMask) -> dict[str, Tensor | None]:
    """Where a mask lets each parameter change: (nnz,) int32 on its device, None = everywhere.

    Parameters that stay frozen as a whole are left out.
    """
    return {
        name: None if len(indices) == param.numel() else positions_on(indices, param.device)
        for name, param in network.named_parameters()
        if (indices := mask.indices.get(name)) is not None and len(indices) > 0
    }


def carry(old: Tensor, before: Tensor | None, new: Tensor, after: Tensor | None) -> None:
    """Write values of the entries at `before` into those of `after`, which contain them."""
    if before is None:
        new.copy_(old)
    else:
        slots = before if after is None else torch.searchsorted(after, before)
        new[slots.long()] = old


class SalientEma:
    """average <- decay * average + (1 - decay) * weight, on the entries of a mask."""

    def __init__(
        self,
        network: nn.Module,
        mask: SaliencyMask,
        decay: float,
        backend: str = "auto",
        masters: Callable[[], Mapping[str, tuple[Tensor | None, Tensor]]] = dict,
    ) -> None:
        """Start at the network's present weights; `mask` has every entry that may change.

        Where `masters` (`Learner.masters`) knows entries of low-precision parameters better than
        the parameters hold them, those are followed.
        """
        self.decay = decay
        self._network = network
        self._masters = masters
        device = next(network.parameters()).device
        self._backend = select(backend, device)
        self._positions: dict[str, Tensor | None] = {}  # int32; None = every entry
        self._averages: dict[str, Tensor] = {}  # (nnz,) float32, or float64 for float64 weights
        self.extend(mask)

    @torch.no_grad()
    def extend(self, mask: SaliencyMask) -> None:
        """Follow the entries of a larger mask, which must contain the present ones.

        Entries that join start at their present weight: until now they never moved.
        """
        masters, before = self._masters(), self._positions
        self._positions = salient_positions(self._network, mask)
        averages, self._averages = self._averages, {}
        for name, positions in self._positions.items():
            param = self._network.get_parameter(name)
            self._averages[name] = self._values(param, positions, masters.get(name))
            if name in averages:
                carry(averages[name], before[name], self._averages[name], positions)

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights into the average."""
        followed: list[Tensor] = self._params(self._network)
        where = list(self._positions.values())
        masters = self._masters()
        for i, (name, positions) in enumerate(self._positions.items()):
            if name in masters:
                followed[i] = self._values(followed[i], positions, masters[name], copy=False)
                where[i] = None
        self._backend.ema_salient_(list(self._averages.values()), followed, where, self.decay)

    def _values(
        self,
        param: Tensor,
        positions: Tensor | None,
        master: tuple[Tensor | None, Tensor] | None,
        copy: bool = True,
    ) -> Tensor:
        """The entries of a parameter at `positions`, (nnz,), as precisely as they are known.

        A master may know fewer of them, after a mask was refreshed. Without `copy` the vector may
        be the master itself.
        """
        count = param.numel() if positions is None else len(positions)
        if master is not None and master[1].numel() == count:
            flat = master[1].reshape(-1)
            return flat.clone() if copy else flat
        dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
        values = torch.empty(count, dtype=dtype, device=param.device)
        self._backend.gather_salient_([param], [positions], [values])
        if master is not None and master[0] is not None:
            carry(master[1], positions_on(master[0], param.device), values, positions)
        return values

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Write the average over the salient entries of `network`, rounded to its dtype."""
        positions, averages = list(self._positions.values()), list(self._averages.values())
        self._backend.scatter_salient_(self._params(network), positions, averages)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name: (nnz,) each. The mask is not among them."""
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take averages over; the mask must be the one that they were saved under."""
        if state.keys() != self._averages.keys():
            raise PeckerError("the saved weight average belongs to another mask")
        for name, average in self._averages.items():
            average.copy_(state[name])

    def _params(self, network: nn.Module) -> list[Tensor]:
        return [network.get_parameter(name) for name in self._averages]


class FullEma:
    """average <- decay * average + (1 - decay) * weight, for a network trained as a whole.

    Attributes:
        averages: By parameter name, in the parameter's shape.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start at the present weights of the parameters that require a gradient."""
        trained = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
        self.averages = {name: p.clone() for name, p in trained.items()}
        self._weights = list(trained.values())
        self._update: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights into the average."""
        self._update(list(self.averages.values()), self._weights, None)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Write the average over the weights of `network`."""
        for name, average in self.averages.items():
            network.get_parameter(name).copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages."""
        return self.averages

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them over."""
        for name, average in self.averages.items():
            average.copy_(state[name])


def slow_average(decay: float | None, iterations: int) -> list[str]:
    """A warning, in a line to show, where a run ends before its average has forgotten its start."""
    if decay is None or iterations == 0 or (left := decay**iterations) < 0.01:
        return []  # after no iterations the result is the first weights, as asked
    weight = 1 - 0.01 ** (1 / iterations)  # of the newest iteration, or more
    digit = 10 ** math.floor(math.log10(weight))
    short = 1 - math.ceil(weight / digit) * digit
    warning = (
        f"ema.decay {decay:g} is long for {iterations:,} iterations: {left:.0%} of the result will "
        f"be the first weights; lower it, e.g. with --set ema.decay={max(short, 0):.6g}"
    )
    return [warning]
