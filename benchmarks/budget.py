"""What the kernels of a training iteration should cost on an H100: computed from shapes.

    python benchmarks/budget.py            # CIFAR-10 at batch 128, Stable Diffusion 1.5 at 1
    python benchmarks/budget.py --preset tiny --json out.json

Nothing here is measured. The trainer runs an iteration on tensors without values, fused blocks
included, and every operation is written down: what it reads and writes, its products, how many
kernels it is. A kernel takes as long as the slowest of these at the rates below, and a launch.
Left out: gaps between kernels, what hides in a workspace.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench import Builder, Case, Provider, Setup, command, make_parser
from networks import NETWORKS, Teacher
from profile_kinds import kind_of
from rows import Row
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from variants import VARIANTS, Variant, configuration

from pecker_fast.distill import PeckerTrainer
from pecker_fast.kernels import (
    channels_last,
    geglu,
    group_norm,
    group_norm_backward,
    layer_norm,
    residual,
)
from pecker_fast.nn import operations
from pecker_fast.nn.accelerate import fuse_
from pecker_fast.runs.memory_model import ShapeMask, outside, replaced, without_values
from pecker_fast.runs.randomness import TRAINING, IterationRandom

__all__ = ["INSTRUCTIONS", "Budget", "budget", "main"]

# Of a prototype of these networks on an H100: bytes a second of its elementwise kernels, share of
# the peak that its convolutions reached with cudnn.benchmark. CIFAR-10's attention took some 8 ms.
_BYTES_A_SECOND = 2.1e12
_PRODUCTS_A_SECOND = 0.66 * 989e12  # bf16, dense
_ATTENTION_A_SECOND = 0.15 * 989e12
# 132 multiprocessors, 4 warps of 32 threads each at 1.755 GHz, of which a half is counted on.
_INSTRUCTIONS_A_SECOND = 0.5 * 132 * 4 * 32 * 1.755e9
_STEP_BYTES_A_SECOND = 2.8e12  # of the optimizer's kernels, in the audit's model
_LAUNCH_S, _LEAST_S = 1.3e-6, 2.6e-6

# Instructions an element in bf16, compiled for sm_90, by the parts of a program's chunk: (without
# dropout, with it); of layer norms (without gradients of the parameters, with them).
# tests/kernels/test_triton_aot.py holds them.
INSTRUCTIONS: Mapping[str, Mapping[int, tuple[float, float]]] = {
    "apply": {1: (17.2, 37.0), 2: (14.4, 35.0), 4: (13.8, 34.1)},
    "sums": {1: (30.8, 48.9), 2: (24.8, 42.9), 4: (22.3, 39.7)},
    "backward": {1: (27.6, 46.8), 2: (25.0, 45.2), 4: (24.8, 43.7)},
    "residual": {1: (35.3, 35.3), 2: (26.9, 26.9), 4: (23.1, 23.1)},
    "statistics": {1: (23.4, 23.4), 2: (15.5, 15.5), 4: (11.4, 11.4)},
    "channel_sums": {1: (11.5, 11.5), 2: (7.7, 7.7), 4: (5.8, 5.8)},
    "geglu": {1: (21.1, 21.1)},
    "geglu_backward": {1: (28.7, 28.7)},
    "layer_norm": {1: (46.4, 46.4)},
    "layer_norm_backward": {1: (44.6, 65.8)},
}

# Of what combines partial sums, for each pair of numbers of a channel in a chunk of a sample.
COMBINING = {"coefficients": 225, "combine": 133}

PUBLISHED_BATCH = {"cifar10": 128, "stl10": 64}


@dataclass
class Part:
    """The kernels of one kind."""

    kernels: int = 0
    gb: float = 0.0
    tflop: float = 0.0
    ms: float = 0.0


@dataclass
class Budget:
    """An iteration, by kind of kernel."""

    parts: defaultdict[str, Part] = field(default_factory=lambda: defaultdict(Part))

    @property
    def ms(self) -> float:
        """Of all kernels, one after the other."""
        return sum(part.ms for part in self.parts.values())

    def add(
        self,
        kind: str,
        size: float,
        flops: float = 0.0,
        instructions: float = 0.0,
        rate: float = _PRODUCTS_A_SECOND,
        bytes_a_second: float = _BYTES_A_SECOND,
    ) -> None:
        """One kernel; of products, whose rate is an average over a network's, the larger bound.

        Args:
            kind: what it is counted under.
            size: bytes read and written.
            flops: of its products.
            instructions: of all its threads.
            rate: products a second.
            bytes_a_second: at which it reads and writes.
        """
        moved, products = size / bytes_a_second, flops / rate
        if flops:
            slowest = max(moved, products)
        else:  # two bounds that are close get in each other's way
            issued = instructions / _INSTRUCTIONS_A_SECOND
            slowest = (moved**3 + issued**3) ** (1 / 3)
        part = self.parts[kind]
        part.kernels += 1
        part.gb += size / 1e9
        part.tflop += flops / 1e12
        part.ms += 1e3 * max(slowest + _LAUNCH_S, _LEAST_S)


def budget(preset: str, batch_size: int, density: float, variant: Variant) -> Budget:
    """An iteration of the trainer, with three networks or one set of weights, in bf16."""
    found = Budget()
    with without_values():
        teacher = Teacher(preset)
        settings = {**variant.settings, "graph": "off", "optimizer.backend": "reference"}
        config = configuration(teacher, batch_size, density, settings | {"accelerate": False})
        original = teacher.copy()
        mask: Any = ShapeMask.of_share(dict(original.named_parameters()), density)
        trainer = PeckerTrainer(teacher.objective(config, "cpu", network=original), mask=mask)
        with _as_on_a_card(found):
            if variant.settings.get("accelerate"):
                for network in (trainer._objective.teacher, *(n for _, n in trainer.networks())):
                    fuse_(network)
            drawn = outside(trainer.draw)(IterationRandom(0, 0, trainer.device, TRAINING))
            with _Operations(found):
                trainer.advance(drawn)
        for learner in trainer.learners:
            _add_step(found, learner.optimizer, bool(config.ema.decay))
    return found


def _add_step(found: Budget, optimizer: Any, averages: bool) -> None:
    """The masked step at its floor: gradients, moments, masters and positions of what changes."""
    size = 0.0
    for param, state in optimizer.state.items():
        entries = state["exp_avg_sq"].numel()
        kept = sum(value.numel() * value.element_size() for value in state.values())
        lines = param.element_size() * min(param.numel(), 16 * entries)  # scattered: whole sectors
        size += 2 * kept + 4 * entries + 3 * lines + (8 * entries if averages else 0)
    found.add("optimizer", size, bytes_a_second=_STEP_BYTES_A_SECOND)


class _Operations(TorchDispatchMode):
    """Adds every operation of torch to a budget."""

    def __init__(self, found: Budget) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        if function.namespace != "aten" or function.is_view or packet in _FREE:
            return result
        given = _tensors((args, kwargs))
        if packet is torch.ops.aten.convolution:
            self._convolution(result, *args[:3])
        elif packet is torch.ops.aten.convolution_backward:
            self._convolution_backward(*args[:3], args[-1])
        else:
            written = _tensors(result)
            size = _bytes(given) + _bytes(written)
            flops = 0.0
            if packet in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
                factor = args[packet is torch.ops.aten.addmm]
                flops = 2.0 * result.numel() * factor.shape[-1]
            self._found.add(kind_of(str(function).replace(".", "::")), size, flops)
        return result

    def _convolution(self, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        flops = 2.0 * out.numel() * weight[0].numel()
        self._found.add("convolution", _bytes([x, weight, out]), flops)
        if bias is not None:
            self._found.add("convolution's bias", 2 * _bytes([out]))

    def _convolution_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> None:
        flops = 2.0 * grad.numel() * weight[0].numel()
        for want in wanted[:2]:
            if want:
                self._found.add("convolution", _bytes([x, weight, grad]), flops)
        if wanted[2]:
            self._found.add("reduction", _bytes([grad]))


_FREE = {
    getattr(torch.ops.aten, name)
    for name in (
        "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view",
        "_local_scalar_dense", "lift_fresh", "promote_types",
    )
}  # fmt: skip


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensors: Sequence[Tensor]) -> float:
    distinct = {id(tensor): tensor for tensor in tensors}.values()
    return float(sum(tensor.numel() * tensor.element_size() for tensor in distinct))


# ---- what runs as a kernel of its own on a card


@contextmanager
def _as_on_a_card(found: Budget) -> Iterator[None]:
    """Fused operations and attention write themselves down and launch nothing."""

    def fused(
        name: str, passes: Callable[..., float], kind: str = "normalisation"
    ) -> Callable[..., None]:
        def launch(*args: Any) -> None:
            x = args[0]
            more = any(getattr(arg, "seed", None) is not None for arg in args)
            more = more or (name == "layer_norm_backward" and args[6] is not None)
            parts = 1
            if x.dim() == 4:
                samples, channels, height, width = x.shape
                parts = channels_last.chunk_tile(samples, height * width, channels).parts
            instructions = INSTRUCTIONS[name][parts][more] * x.numel()
            found.add(kind, passes(*args) * _bytes([x]), instructions=instructions)

        return launch

    def small(*args: Any, instructions: float = 0) -> None:
        size = _bytes(_tensors(args))
        found.add("normalisation's small sums", size, instructions=instructions)

    def combining(name: str, partials: int) -> Callable[..., None]:
        def launch(*args: Any) -> None:
            pairs = sum(t.numel() for t in _tensors(args[:partials])) / 2
            small(*args, instructions=COMBINING[name] * pairs)

        return launch

    def column_sums(table: Tensor, first: Any, second: Any, scale: float = 1.0) -> None:
        small(table)

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _Attention.apply(query, key, value, found)  # type: ignore[no-any-return]

    def residual_passes(hidden: Tensor, shortcut: Tensor, second: Tensor | None, *_: Any) -> float:
        return 3 if second is None else 4

    def backward_passes(source: Tensor, *args: Any) -> float:
        shortcut = args[2 if source.dim() == 4 else 1]  # of an image, of tokens
        return 3 if shortcut is None else 4

    def layer_norm_passes(x: Tensor, add: Tensor | None, *_: Any) -> float:
        return 2 if add is None else 4

    with replaced(
        (operations, "_unavailable", lambda device_type: None),
        (channels_last, "statistics", fused("statistics", lambda *_: 1)),
        (channels_last, "channel_sums", fused("channel_sums", lambda *_: 1)),
        (channels_last, "column_sums", column_sums),
        (group_norm, "coefficients", combining("coefficients", 2)),
        (group_norm, "apply", fused("apply", lambda *_: 2)),
        (group_norm_backward, "sums", fused("sums", lambda *_: 2)),
        (group_norm_backward, "combine", combining("combine", 1)),
        (group_norm_backward, "apply", fused("backward", backward_passes)),
        (residual, "residual_add", fused("residual", residual_passes)),
        (geglu, "forward", fused("geglu", lambda *_: 1.5, "gated unit")),
        (geglu, "backward", fused("geglu_backward", lambda *_: 2.5, "gated unit")),
        (layer_norm, "forward", fused("layer_norm", layer_norm_passes)),
        (layer_norm, "backward", fused("layer_norm_backward", backward_passes)),
        (F, "scaled_dot_product_attention", attention),
    ):
        yield


class _Attention(torch.autograd.Function):
    """Flash attention: its products, forward two, backward five; no matrix of scores is written."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, found: Budget) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.found = found
        out = torch.empty_like(query)
        _add_attention(found, query, key, products=2, tensors=[query, key, value, out])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value = ctx.saved_tensors
        tensors = [query, key, value] * 3
        _add_attention(ctx.found, query, key, products=5, tensors=tensors)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _add_attention(
    found: Budget, query: Tensor, key: Tensor, products: int, tensors: Sequence[Tensor]
) -> None:
    flops = 2.0 * products * query.numel() * key.shape[-2]
    size = float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    found.add("attention", size, flops, rate=_ATTENTION_A_SECOND)


# ---- the command


@dataclass(frozen=True)
class BudgetCase(Case):
    """One network: B remain images, and as many forget images."""

    benchmark = "budget"

    batch_size: int = 1
    density: float = 0.1

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """What runs in bf16 with fused blocks; there is nothing to time."""
        chosen = [v for v in VARIANTS if v.settings.get("accelerate") and v.name.startswith("all")]
        return {variant.name: partial(self._look, variant) for variant in chosen}

    def _look(self, variant: Variant) -> Provider:
        found = budget(self.preset, self.batch_size, self.density, variant)
        largest_first = sorted(found.parts.items(), key=lambda item: -item[1].ms)
        row: Row = {"card": "H100", "predicted_ms": found.ms}
        for figure in ("ms", "gb", "tflop", "kernels"):
            row[f"parts_{figure}"] = {k: getattr(part, figure) for k, part in largest_first}
        return Provider(None, columns=row)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--preset", nargs="+", choices=NETWORKS, default=["cifar10", "sd15"])
    parser.add_argument("--density", type=float, default=0.1)
    options = parser.parse_args(argv)
    cases = [
        BudgetCase(preset, PUBLISHED_BATCH.get(preset, 1), options.density)
        for preset in options.preset
    ]
    return command(options, cases)


if __name__ == "__main__":
    sys.exit(main())
