"""Peak memory of a training iteration, by part: as published, and with what saves memory.

    python benchmarks/memory.py                                 # sd15 and sdxl, computed
    python benchmarks/memory.py --device cuda --preset sd15     # and measured beside it
    python benchmarks/memory.py --preset tiny --json out.json

Computed figures come from shapes: pecker_fast/runs/memory_model.py, what `erase --dry-run` says of
a run. The published loop is followed likewise. The blocks are torch's: fused ones, which save less,
have measured figures only.

Measured figures are what torch's allocator had handed out at the peak of a few iterations.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from bench import Builder, Case, Provider, Setup, command, make_parser, out_of_memory
from networks import NETWORKS, Teacher
from published_loop import PublishedAdam, PublishedLoop
from rows import Row
from timing import peak_memory
from torch import Tensor
from torch.utils._pytree import tree_leaves
from variants import ONE_SET, Problem, Variant, configuration

from pecker_fast.distill import PeckerConfig, PeckerTrainer
from pecker_fast.runs.live_memory import HOST, WEIGHTS, LiveMemory, cuda_autocast_rules
from pecker_fast.runs.memory_model import ShapeMask, follow, replaced, without_values

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
    with ExitStack() as stack:
        stack.enter_context(without_values())
        stack.enter_context(cuda_autocast_rules())
        stack.enter_context(
            replaced((PublishedAdam, "step", _adam_step), (PublishedLoop, "_read", lambda *_: None))
        )
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


def _trainer(teacher: Teacher, config: PeckerConfig, memory: LiveMemory) -> Any:
    original = teacher.copy()
    memory.label(original.parameters(), HOST)
    mask: Any = ShapeMask.of_share(dict(original.named_parameters()), config.mask.density)
    objective = teacher.objective(config, "cpu", network=original)
    return follow(memory, lambda: PeckerTrainer(objective, mask=mask))


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
    memory.label(objective.teacher.parameters(), WEIGHTS)
    for network in (loop.generator, loop.pseudo_score):
        memory.label(network.parameters(), WEIGHTS)
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
