"""Peak memory of a training iteration, by part: as published, and with what saves memory.

    python benchmarks/memory.py                                 # sd15 and sdxl, computed
    python benchmarks/memory.py --device cuda --preset sd15     # and measured beside it
    python benchmarks/memory.py --preset tiny --json out.json

Computed figures come from shapes: the trainer itself (or the published loop) runs on fake tensors,
and every storage is followed from its making to its end (see live_memory.py). The optimizers take
no step there, but have the state that they would have. The blocks are torch's: fused ones, which
save less, have measured figures only.

Measured figures are what torch's allocator had handed out at the peak of a few iterations.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from bench import Builder, Case, Provider, Setup, command, make_parser, out_of_memory
from live_memory import HOST, LiveMemory, cuda_autocast_rules
from networks import NETWORKS, Teacher
from published_loop import PublishedAdam, PublishedLoop
from rows import Row
from timing import peak_memory
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from variants import ONE_SET, Problem, Variant, configuration

from pecker_fast.backends import reference
from pecker_fast.distill import PeckerConfig, PeckerTrainer
from pecker_fast.distill.network_set import SharedNetworks
from pecker_fast.optim.adamw import MaskedAdamW
from pecker_fast.optim.released import ReleasedGrads
from pecker_fast.runs.randomness import TRAINING, IterationRandom

__all__ = ["LAYOUTS", "Computed", "MemoryCase", "compute", "main"]

_RELEASE = {"optimizer.release_grads": True}
_MICRO = {"micro_batch": 1}
_BF16 = {"precision": "bf16"}
_LEAST = {**ONE_SET, **_BF16, **_RELEASE, **_MICRO}
_RECOMPUTED = {**_LEAST, "recompute": True}


LAYOUTS: tuple[Variant, ...] = (
    Variant("as published", trainer=False, masked_optimizer=False),
    Variant("three networks"),
    Variant("three networks, released gradients", settings=_RELEASE),
    Variant("three networks, one image at a time", settings=_MICRO),
    Variant("three networks, bf16", settings=_BF16),
    Variant("three networks, bf16, both", settings={**_BF16, **_RELEASE, **_MICRO}),
    Variant("one set of weights", settings=ONE_SET),
    Variant("one set, released gradients", settings={**ONE_SET, **_RELEASE}),
    Variant("one set, released, one image", settings={**ONE_SET, **_RELEASE, **_MICRO}),
    Variant("one set, bf16", settings={**ONE_SET, **_BF16}),
    Variant("one set, bf16, released", settings={**ONE_SET, **_BF16, **_RELEASE}),
    Variant("one set, bf16, released, one image", settings=_LEAST),
    Variant("the same, recomputed", settings=_RECOMPUTED),
    Variant("the same, blocks too", settings={**_RECOMPUTED, "recompute_blocks": True}),
    Variant(
        "the same, fused blocks, CUDA graph",
        settings={**_RECOMPUTED, "accelerate": True, "graph": "auto"},
    ),
)
_MEASURED_ITERATIONS = 5  # with a CUDA graph the last ones are replays


# ---- computed


class Computed(NamedTuple):
    """What iterations on fake tensors tell: bytes at the peak, and by kind then and at the end."""

    peak_bytes: int
    at_peak: dict[str, int]
    between: dict[str, int]


def compute(preset: str, batch_size: int, density: float, layout: Variant) -> Computed:
    """The peak of the first iterations on fake tensors, on a device that starts empty."""
    with _fake_tensors():
        teacher = Teacher(preset)
        settings = {"precision": teacher.network.published_precision, **layout.settings}
        settings["optimizer.backend"] = "reference"
        config = configuration(teacher, batch_size, density, settings)
        with LiveMemory() as memory:
            alive = (_trainer if layout.trainer else _published)(teacher, config, memory)
            between = _sizes(memory.live_bytes)
            del alive
    return Computed(memory.peak_bytes, _sizes(memory.at_peak), between)


def _sizes(found: Counter[str]) -> dict[str, int]:
    """Largest first, without what is 0 or not on the device."""
    return {kind: size for kind, size in found.most_common() if size and kind != HOST}


def _nothing(*_: Any, **__: Any) -> None:
    """Instead of what reads or moves values, which are not there, and allocates nothing."""


def _to(network: nn.Module, _: torch.device, dtype: torch.dtype) -> nn.Module:
    """`Module.to`, which cannot exchange fake parameters that are referred to."""
    for module in network.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(param.detach().to(dtype), param.requires_grad))
    return network


@contextmanager
def _fake_tensors() -> Iterator[None]:
    """Tensors have no values, and nothing of the package asks for any."""
    kernels = ("gather_salient_", "scatter_salient_", "swap_salient_", "ema_salient_")
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(cuda_autocast_rules())
        for patch in (
            # A copied network stays in the one mode: its parameters can have aliases.
            mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True),
            mock.patch.object(nn.Module, "to", _to),
            mock.patch.multiple(reference, **dict.fromkeys(kernels, _nothing)),
            mock.patch.object(MaskedAdamW, "step", _nothing),
            mock.patch.object(PublishedAdam, "step", _adam_step),
            mock.patch.object(PublishedLoop, "_read", _nothing),
            mock.patch("pecker_fast.optim.resolve.mask_digest", return_value=""),
            mock.patch("pecker_fast.runs.learner.skip_frozen_", _nothing),
        ):
            stack.enter_context(patch)
        yield


def _trainer(teacher: Teacher, config: PeckerConfig, memory: LiveMemory) -> Any:
    original = teacher.copy()
    memory.label(original.parameters(), HOST)
    shapes = teacher.shapes()
    counts = {n: max(1, round(config.mask.density * shape.numel())) for n, shape in shapes.items()}
    positions = {name: torch.empty(count, dtype=torch.int32) for name, count in counts.items()}
    memory.label(positions.values(), "positions of the mask")
    nnz = sum(counts.values())
    mask: Any = SimpleNamespace(indices=positions, shapes=shapes, nnz=nnz, check=_nothing)
    objective = teacher.objective(config, "cpu", network=original)
    trainer = PeckerTrainer(objective, mask=mask)
    memory.label(objective.teacher.parameters(), "weights")  # the original is, where it is in use
    for _, network in trainer.networks():
        memory.label(network.parameters(), "weights")
        memory.label_gradients(network.requires_grad_(True))
        network.requires_grad_(False)  # it rests
    if isinstance(trainer._networks, SharedNetworks):
        trainer._networks.use("generator")
        for absent in trainer._networks._absent.values():
            memory.label(absent.values(), "salient values of the others")
    for learner in trainer.learners:
        for state in learner.optimizer.state.values():
            for key, value in state.items():
                memory.label([value], "fp32 masters" if key == "master" else "optimizer state")
    if trainer._ema is not None:
        memory.label(trainer._ema.state_dict().values(), "weight average")
    take = ReleasedGrads.take

    def labelled(released: ReleasedGrads, param: Tensor) -> Tensor | None:
        memory.label([param.grad], "gradients")
        kept = take(released, param)
        memory.label([kept], "gradients")
        return kept

    with mock.patch.object(ReleasedGrads, "take", labelled):
        trainer.advance(trainer.draw(IterationRandom(0, 0, trainer.device, TRAINING)))
    return trainer


def _adam_step(adam: PublishedAdam) -> None:
    """As far as memory goes: two moments, and the square root of one, as of torch's default."""
    params = [param for group in adam.param_groups for param in group["params"]]
    for param in params:
        if not adam.state[param]:
            adam.state[param] = {k: torch.zeros_like(param) for k in ("exp_avg", "exp_avg_sq")}
    torch._foreach_sqrt([adam.state[param]["exp_avg_sq"] for param in params])


def _published(teacher: Teacher, config: PeckerConfig, memory: LiveMemory) -> Any:
    def dense() -> dict[str, Tensor]:
        return {n: torch.empty(shape, dtype=torch.bool) for n, shape in teacher.shapes().items()}

    objective = teacher.objective(config, "cpu")
    make = partial(PublishedAdam, options=config.optimizer)
    loop = PublishedLoop(objective, teacher, SimpleNamespace(to_dense=dense), make)
    memory.label(objective.teacher.parameters(), "weights")
    for network in (loop.generator, loop.pseudo_score):
        memory.label(network.parameters(), "weights")
        memory.label_gradients(network)
    if loop.average is not None:
        memory.label(loop.average.parameters(), "weight average")
    iterations = loop.run()
    next(iterations)  # the moments are there from its end on, the gradients stay
    for adam in loop.optimizers:
        memory.label(adam.masks.values(), "positions of the mask")
        memory.label(tree_leaves(dict(adam.state)), "optimizer state")
    next(iterations)
    return loop


# ---- measured


def measure(problem: Problem, layout: Variant) -> Row:
    """What torch's allocator hands out on the device."""

    def iterate() -> None:
        step, _ = problem.start(layout)
        for _ in range(_MEASURED_ITERATIONS):
            step()

    try:
        return {"measured_peak_bytes": peak_memory(iterate, problem.device)[1]}
    except torch.OutOfMemoryError as error:
        return {"skipped": out_of_memory(error)}


@dataclass(frozen=True)
class MemoryCase(Case):
    """One network: B remain images, and as many forget images."""

    benchmark = "memory"

    batch_size: int = 1
    density: float = 0.1

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """Every layout; there is nothing to time."""
        problem = None
        if torch.device(setup.device).type == "cuda":
            problem = Problem(self.preset, self.batch_size, self.density, setup.device)
        return {layout.name: partial(self._look, layout, problem) for layout in LAYOUTS}

    def _look(self, layout: Variant, problem: Problem | None) -> Provider:
        published = NETWORKS[self.preset].published_precision
        row: Row = {"settings": {"precision": published, **layout.settings}}
        if not layout.settings.get("accelerate"):
            computed = compute(self.preset, self.batch_size, self.density, layout)
            row |= {"computed_peak_bytes": computed.peak_bytes, "parts": computed.at_peak}
        elif problem is None:
            row["skipped"] = "measured on a CUDA device only"
        if problem is not None:
            row |= measure(problem, layout)
        return Provider(None, columns=row)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--preset", nargs="+", choices=NETWORKS, default=["sd15", "sdxl"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--density", type=float, default=0.1)
    options = parser.parse_args(argv)
    cases = [MemoryCase(preset, options.batch, options.density) for preset in options.preset]
    return command(options, cases)


if __name__ == "__main__":
    sys.exit(main())
