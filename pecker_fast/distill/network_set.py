"""Teacher, generator and pseudo-score: three sets of weights, or one that serves all three.

Under a mask on both trained networks the three differ in salient entries only. `SharedNetworks`
keeps one set of weights and exchanges those entries in place, so that two networks cost nothing but
two compact vectors. Whoever runs a network, forward or backward, asks for it by its role first:
`networks.use("generator")`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pecker_fast.backends import select
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.runs.ema import carry, salient_positions
from pecker_fast.runs.live_memory import WEIGHTS

__all__ = [
    "NetworkSet",
    "Role",
    "SharedNetworks",
    "alias",
    "equal_networks",
]

Role: TypeAlias = Literal["teacher", "generator", "pseudo_score", "start"]
"""`start` is the generator as the run began, which stays so."""
_TRAINED: tuple[Role, ...] = ("generator", "pseudo_score")


class NetworkSet:
    """The three networks of a run, each with weights of its own.

    They are three modules, whatever a subclass lets them share.
    """

    def __init__(
        self,
        teacher: nn.Module,
        generator: nn.Module,
        pseudo_score: nn.Module,
        start: nn.Module | None = None,
    ) -> None:
        """Keep them, which are three modules; `start` is None where it is the teacher."""
        self._networks: dict[Role, nn.Module] = {
            "teacher": teacher,
            "generator": generator,
            "pseudo_score": pseudo_score,
            "start": teacher if start is None else start,
        }

    def use(self, role: Role) -> nn.Module:
        """The network of that role, with its own weights in place until another one is used."""
        return self._networks[role]

    def state_dict(self) -> dict[str, Any]:
        """What generator and pseudo-score have become."""
        return {role: self._networks[role].state_dict() for role in _TRAINED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take that over, into networks that started alike."""
        for role in _TRAINED:
            self._networks[role].load_state_dict(state[role])

    def extend(self, mask: SaliencyMask) -> None:
        """From now on all entries of `mask` may change; it contains the former ones."""

    def held(self) -> Iterator[tuple[str, Iterable[Tensor]]]:
        """All weights, and what else is kept of a network, by the kind of it."""
        for network in self._networks.values():
            yield WEIGHTS, network.parameters()


class SharedNetworks(NetworkSet):
    """Three modules over one set of weights.

    The modules have parameters of their own (so gradients, hooks, optimizers and modes are their
    own), whose memory is the same. One role's salient values are in place; those of the other two
    lie in compact vectors. `use` exchanges values and vectors, and changes no version counter: the
    weights that a graph saved are back in place when `use` is called before its backward pass.

    An iteration that ends with the role it began with has every vector back where it was, so its
    addresses can be captured in a CUDA graph.
    """

    def __init__(self, teacher: nn.Module, mask: SaliencyMask, backend: str = "auto") -> None:
        """Make generator and pseudo-score, equal to the teacher.

        Args:
            teacher: Its memory becomes that of all three.
            mask: Every entry in which they may come to differ.
            backend: As for the optimizer.
        """
        generator, pseudo_score = (alias(teacher).requires_grad_(True) for _ in range(2))
        super().__init__(teacher, generator, pseudo_score)
        self._backend = select(backend, next(teacher.parameters()).device)
        self._present: Role = "generator"
        self._positions: dict[str, Tensor | None] = {}
        # What is not in place, by role and name: (nnz,) in the parameter's dtype.
        self._absent: dict[Role, dict[str, Tensor]] = {"teacher": {}, "pseudo_score": {}}
        self.extend(mask)

    @torch.no_grad()
    def use(self, role: Role) -> nn.Module:
        """As `NetworkSet.use`: exchanges what is in place with what is to be."""
        role = "teacher" if role == "start" else role  # all three began as it
        if role != self._present:
            values = self._absent.pop(role)
            self._backend.swap_salient_(
                self._memory(), list(self._positions.values()), list(values.values())
            )
            self._absent[self._present] = values
            self._present = role
        return self._networks[role]

    def state_dict(self) -> dict[str, Any]:
        """The salient values of each trained network by parameter name: (nnz,) each."""
        self.use("generator")
        return {"generator": self._gather(), "pseudo_score": dict(self._absent["pseudo_score"])}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `NetworkSet.load_state_dict`; the mask must be the one they were saved under.

        Raises:
            PeckerError: The values of another mask.
        """
        self.use("generator")
        absent = self._absent["pseudo_score"]
        ours = {name: values.shape for name, values in absent.items()}
        for role in _TRAINED:
            if {name: values.shape for name, values in state[role].items()} != ours:
                raise PeckerError(f"the saved {role} values belong to another mask")
        memory = self._memory()
        values = [value.to(memory[0].device) for value in state["generator"].values()]
        self._backend.scatter_salient_(memory, list(self._positions.values()), values)
        for name, value in absent.items():
            value.copy_(state["pseudo_score"][name])

    @torch.no_grad()
    def extend(self, mask: SaliencyMask) -> None:
        """As `NetworkSet.extend`: where entries join, all three networks are still equal."""
        self.use("generator")
        before = self._positions
        self._positions = salient_positions(self.use("generator"), mask)
        for role, old in self._absent.items():
            new = self._gather()
            for name, values in old.items():
                carry(values, before[name], new[name], self._positions[name])
            self._absent[role] = new

    def held(self) -> Iterator[tuple[str, Iterable[Tensor]]]:
        """As `NetworkSet.held`."""
        yield WEIGHTS, self._networks["teacher"].parameters()
        for values in self._absent.values():
            yield "salient values of the others", values.values()

    def _gather(self) -> dict[str, Tensor]:
        """What is in place at the salient positions, as vectors."""
        memory = self._memory()
        values = []
        for param, positions in zip(memory, self._positions.values(), strict=True):
            count = param.numel() if positions is None else len(positions)
            values.append(torch.empty(count, dtype=param.dtype, device=param.device))
        self._backend.gather_salient_(memory, list(self._positions.values()), values)
        return dict(zip(self._positions, values, strict=True))

    def _memory(self) -> list[Tensor]:
        # Not `detach`, which shares the version counter: graphs saved these weights.
        teacher = self._networks["teacher"]
        return [teacher.get_parameter(name).data for name in self._positions]


def alias(network: nn.Module) -> nn.Module:
    """A copy of a module, with parameters of its own that lie in the same memory.

    They share no version counter: a graph does not notice what happens to the other's.
    """
    memo = {id(p): nn.Parameter(p.data, p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, memo)


def equal_networks(teacher: nn.Module) -> NetworkSet:
    """The three as a run starts, over the teacher's memory; none of them may learn yet."""
    generator, pseudo_score = (alias(teacher).requires_grad_(True) for _ in range(2))
    return NetworkSet(teacher, generator, pseudo_score)
