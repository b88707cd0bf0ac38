"""What a run will take: its peak memory by part, from shapes alone, in seconds.

The run itself is made, finds its mask and iterates once, on tensors that have shapes and lifetimes
but no memory; every storage is followed from its making to its end (live_memory.py). Optimizers
take no step there, but have the state that they would have. The model says nothing of what
`NOT_COUNTED` names.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from pecker_fast.backends import reference
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.optim import resolve
from pecker_fast.optim.adamw import MaskedAdamW
from pecker_fast.optim.released import ReleasedGrads
from pecker_fast.runs import learner
from pecker_fast.runs.live_memory import GRADIENTS, LiveMemory
from pecker_fast.runs.masked import MaskedRun
from pecker_fast.runs.randomness import TRAINING, IterationRandom
from pecker_fast.runs.run import Run

__all__ = [
    "NOT_COUNTED", "Peak", "ShapeMask", "follow", "model_peak", "outside", "replaced",
    "without_values",
]  # fmt: skip

T = TypeVar("T")
R = TypeVar("R", bound=Run[Any])

NOT_COUNTED = (
    "workspaces of convolutions and products, what the allocator holds back or rounds up, and on a "
    "GPU its context and a CUDA graph's pool"
)
"""In words, for whoever reads a figure."""


@dataclass(frozen=True)
class Peak:
    """The most that a run holds at a time on its device."""

    size: int  # bytes
    parts: Mapping[str, int]  # the same by kind, the largest first
    moment: str  # when that is, in words: the start or an iteration


@dataclass(frozen=True)
class ShapeMask:
    """A mask of which only the number of positions is known; in place of a `SaliencyMask`."""

    indices: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]

    @classmethod
    def of_share(
        cls, params: Mapping[str, Tensor], density: float, device: torch.device | str | None = None
    ) -> ShapeMask:
        """The same share of every tensor, one entry at least; where that is, or there."""
        positions = {
            name: torch.empty(
                max(1, round(density * param.numel())),
                dtype=torch.int32,
                device=param.device if device is None else device,
            )
            for name, param in params.items()
        }
        return cls(positions, {name: param.shape for name, param in params.items()})

    @property
    def nnz(self) -> int:
        """Salient entries."""
        return sum(map(len, self.indices.values()))

    @property
    def density(self) -> float:
        """Their share."""
        return self.nnz / sum(shape.numel() for shape in self.shapes.values())

    def check(self, _: Any) -> None:
        """It fits: it was made of the network."""


class _WithoutValues(FakeTensorMode):
    """Fake tensors; whoever asks for a number gets 1, which is finite, true and not a NaN."""

    def __deepcopy__(self, memo: Any) -> _WithoutValues:
        return self  # a copied network stays in the one mode: its parameters can have aliases

    def __torch_dispatch__(  # type: ignore[override]
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            return 1
        return super().__torch_dispatch__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def _nothing(*_: Any, **__: Any) -> None:
    """Instead of what reads or moves values, which are not there, and allocates nothing."""


def _to(network: nn.Module, device: Any, dtype: torch.dtype | None = None) -> nn.Module:
    """`Module.to`, which exchanges fake parameters, and cannot where they are referred to."""
    for module in network.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            moved = param.detach().to(device, dtype)
            setattr(module, name, nn.Parameter(moved, param.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            moved = buffer.to(device, dtype if buffer.is_floating_point() else None)
            module._buffers[name] = moved
    return network


def _of_scores(scores: Mapping[str, Tensor], density: float, **_: Any) -> ShapeMask:
    return ShapeMask.of_share(scores, density)


def _of_network(network: nn.Module, density: float, **_: Any) -> ShapeMask:
    return ShapeMask.of_share(dict(network.named_parameters()), density)


def _of_all(network: nn.Module) -> ShapeMask:
    return ShapeMask.of_share(dict(network.named_parameters()), 1.0, "cpu")  # as the real one


@contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Exchange attributes of classes and modules, (owner, name, what is there instead)."""
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in changes]
    try:
        for owner, name, instead in changes:
            setattr(owner, name, instead)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextmanager
def without_values() -> Iterator[None]:
    """Tensors have no values, and nothing of a run asks for any; its masks are `ShapeMask`s."""
    kernels = ("gather_salient_", "scatter_salient_", "swap_salient_", "ema_salient_")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy
        with (
            replaced(
                (nn.Module, "to", _to),
                (MaskedAdamW, "step", _nothing),
                (SaliencyMask, "from_scores", _of_scores),
                (SaliencyMask, "random", _of_network),
                (SaliencyMask, "full", _of_all),
                (resolve, "mask_digest", lambda _: ""),
                (learner, "skip_frozen_", _nothing),  # of entries ranked singly no row is frozen
                *((reference, name, _nothing) for name in kernels),
            ),
            _WithoutValues(allow_non_fake_inputs=True),
        ):
            yield


def follow(memory: LiveMemory, start: Callable[[], R]) -> R:
    """Make a run and let it iterate once, all of it counted by kind; inside `without_values`."""
    settle, take = MaskedRun._settle_mask, ReleasedGrads.take

    def labelled_settle(run: MaskedRun[Any], mask: Any, find: Any) -> Any:
        if mask is None:  # finding one may be the peak
            memory.moment = "the start, finding the mask included"
            _label(memory, run)
        return settle(run, mask, find)

    def labelled_take(released: ReleasedGrads, param: Tensor) -> Tensor | None:
        memory.label([] if param.grad is None else [param.grad], GRADIENTS)
        kept = take(released, param)
        memory.label([] if kept is None else [kept], GRADIENTS)
        return kept

    with replaced(
        (MaskedRun, "_settle_mask", labelled_settle), (ReleasedGrads, "take", labelled_take)
    ):
        memory.moment = "the start"
        run = start()
        _label(memory, run)
        draw: Any = run.draw
        if isinstance(run, MaskedRun):
            memory.label(run.mask.indices.values(), "positions of the mask")
            draw = outside(draw)  # values of conditions decide how many there are
        for _, network in run.networks():
            memory.label_gradients(network.requires_grad_(True))
            network.requires_grad_(False)  # it rests
        memory.moment = "an iteration"
        run.advance(draw(IterationRandom(0, 0, run.device, TRAINING)))
    return run


def _label(memory: LiveMemory, run: Run[Any]) -> None:
    for kind, tensors in run.held():
        memory.label(tensors, kind)


def outside(function: Callable[..., T]) -> Callable[..., T]:
    """The same function, on real tensors also where all others have no values."""

    def call(*args: Any) -> T:
        with _disable_current_modes():
            return function(*args)

    return call


def model_peak(
    start: Callable[[Callable[[nn.Module], nn.Module]], Run[Any]], device: torch.device
) -> Peak:
    """The most that a run will hold on its device at a time, in its first iteration or before.

    Args:
        start: makes the run of copies of the networks that it is given: copies that have shapes
            only, by the function that it gets. Its optimizers use the backend "reference".
        device: where it takes place.
    """
    with without_values(), LiveMemory(device) as memory:

        def shaped(network: nn.Module) -> nn.Module:
            known: dict[int, Tensor] = {
                id(p): nn.Parameter(torch.empty_like(p), p.requires_grad)
                for p in network.parameters()
            }
            known |= {id(buffer): torch.empty_like(buffer) for buffer in network.buffers()}
            copied = copy.deepcopy(network, known)
            memory.label(copied.parameters(), "networks as they were given")
            return copied

        alive = follow(memory, lambda: start(shaped))
        del alive
        parts = {kind: size for kind, size in memory.at_peak.most_common() if size}
        return Peak(memory.peak_bytes, parts, memory.peak_moment)
