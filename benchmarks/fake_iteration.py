"""A training iteration on fake tensors: what it keeps alive, known from shapes alone.

It is the trainer's own iteration, or the published loop's. The optimizers take no step, but have
the state that they would have. The blocks are torch's; fused ones save less.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from live_memory import LiveMemory, cuda_autocast_rules
from networks import Teacher
from published_loop import PublishedLoop, Term
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from variants import Variant, configuration

from pecker_fast.distill import NoiseSchedule, PeckerConfig, network_set
from pecker_fast.distill.conditions import Conditions
from pecker_fast.distill.iteration import Iteration, IterationInputs
from pecker_fast.distill.network_set import SeparateNetworks, SharedNetworks
from pecker_fast.distill.objective import Draws
from pecker_fast.optim.state import init_state

__all__ = ["Computed", "compute"]


@dataclass(frozen=True)
class Computed:
    """What an iteration on fake tensors tells.

    Attributes:
        peak_bytes: the most that was alive at once.
        at_peak: kind -> bytes at that moment.
        between: kind -> bytes that stay from one iteration to the next.
    """

    peak_bytes: int
    at_peak: dict[str, int]
    between: dict[str, int]


def compute(preset: str, batch_size: int, density: float, layout: Variant) -> Computed:
    """The peak of two iterations on fake tensors."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        # A copied network stays in the one mode: its parameters can have aliases.
        mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True),
        cuda_autocast_rules(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy
        teacher = _FakeTeacher(preset)
        settings = dict(layout.settings)
        settings.setdefault("precision", teacher.network.published_precision)
        config = configuration(teacher, batch_size, density, settings)
        simulate = _trainer if layout.trainer else _published
        with LiveMemory() as memory:
            alive = simulate(teacher, config, memory)
            between = _sizes(memory.live_bytes)
            del alive
    return Computed(memory.peak_bytes, _sizes(memory.at_peak), between)


def _sizes(found: Counter[str]) -> dict[str, int]:
    """Largest first, without what is 0."""
    return {kind: size for kind, size in found.most_common() if size}


class _FakeTeacher(Teacher):
    """A teacher of fake tensors with a schedule of real numbers, which is checked when made."""

    def schedule(self, config: PeckerConfig) -> NoiseSchedule:
        """As of any teacher."""
        with _disable_current_modes():
            return super().schedule(config)


# ---- the trainer's iteration


class _NoBackend:
    """Moves no values: the kernels that do allocate nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class _Average:
    """The average's place, without its values."""

    def update(self) -> None:
        """Nothing."""


class _Learner:
    """A learner whose optimizer has its state and takes no step."""

    def __init__(
        self,
        network: nn.Module,
        positions: Mapping[str, Tensor] | None,
        config: PeckerConfig,
        memory: LiveMemory,
    ) -> None:
        """Allocate what MaskedAdamW does; `positions` of the mask by name, None: dense."""
        self._network = network.requires_grad_(True)
        self._positions = positions
        self._compact: dict[nn.Parameter, Tensor] = {}
        group = {
            "betas": (config.optimizer.beta1, config.optimizer.beta2),
            "amsgrad": False,
            "capturable": True,
        }
        self._states = []
        memory.label_gradients(network)
        for name, param in network.named_parameters():
            indices = None if positions is None else positions[name]
            state = init_state(param, indices, group, master=True)
            for key, value in state.items():
                memory.label([value], "fp32 masters" if key == "master" else "optimizer state")
            self._states.append(state)
            if config.optimizer.release_grads and indices is not None:
                param.register_post_accumulate_grad_hook(self._releaser(indices, memory))
        self.rest()

    def _releaser(self, indices: Tensor, memory: LiveMemory) -> Any:
        def release(param: nn.Parameter) -> None:
            if param not in self._compact:
                self._compact[param] = torch.zeros(len(indices))
                memory.label([self._compact[param]], "gradients")
            param.grad = None

        return release

    def before_last_backward(self) -> None:
        """Nothing is sent."""

    def learn(self) -> None:
        """Train mode, gradients wanted."""
        self._network.train().requires_grad_(True)

    def rest(self) -> None:
        """Eval mode, none wanted."""
        self._network.eval().requires_grad_(False)

    def step(self) -> None:
        """Drop the gradients, as a step does at its end."""
        self._compact.clear()
        self._network.zero_grad(set_to_none=True)


def _trainer(teacher: Teacher, config: PeckerConfig, memory: LiveMemory) -> Any:
    phi = teacher.copy()
    if config.precision == "bf16":
        _round_weights(phi)
    objective = teacher.objective(config, "cpu", network=phi)
    memory.label(phi.parameters(), "weights")
    positions = {
        name: torch.empty(max(1, round(config.mask.density * shape.numel())), dtype=torch.int32)
        for name, shape in teacher.shapes().items()
    }
    memory.label(positions.values(), "positions of the mask")
    mask = mock.Mock(indices=positions)
    both = config.mask.apply == "both"
    if both and config.mask.share_weights:
        with mock.patch.object(network_set, "select", lambda *_: _NoBackend()):
            networks: Any = SharedNetworks(phi, mask)
        for absent in networks._absent.values():
            memory.label(absent.values(), "salient values of the others")
    else:
        networks = SeparateNetworks(phi, copy.deepcopy(phi), copy.deepcopy(phi))
        for role in ("generator", "pseudo_score"):
            memory.label(networks.use(role).parameters(), "weights")
    theta = networks.use("generator")
    psi = _Learner(networks.use("pseudo_score"), positions if both else None, config, memory)
    learner = _Learner(theta, positions, config, memory)
    average = None
    if config.ema.decay is not None:
        average = _Average()
        average.values = [torch.empty(len(indices)) for indices in positions.values()]
        memory.label(average.values, "weight average")
    iteration = Iteration(objective, networks, psi, learner, average)
    iteration.compute(_inputs(config, teacher.network.sample_shape))
    return iteration


def _round_weights(network: nn.Module) -> None:
    """The network in bf16. `Module.to` cannot exchange fake parameters that are referred to."""
    for module in network.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            rounded = nn.Parameter(torch.empty_like(param, dtype=torch.bfloat16))
            setattr(module, name, rounded)


def _inputs(config: PeckerConfig, shape: tuple[int, ...]) -> IterationInputs:
    count = 2 * config.batch_size

    def labels() -> Tensor:
        return torch.zeros(count, dtype=torch.int64)

    def draws() -> Draws:
        return Draws(torch.empty(count, *shape), torch.empty(count, *shape), labels())

    shared = torch.empty(count, *shape) if config.share_generator_pass else None
    return IterationInputs(Conditions(labels(), labels()), draws(), draws(), shared)


# ---- the published loop


class _Adam:
    """torch's default Adam as far as memory goes: two moments and the square root of one."""

    def __init__(self, network: nn.Module, masked: bool, memory: LiveMemory) -> None:
        """Allocate the mask; the moments come with the first step, as in torch."""
        self._params = list(network.parameters())
        self._memory = memory
        self._state: list[Tensor] = []
        if masked:
            self._masks = [torch.empty(p.shape, dtype=torch.bool) for p in self._params]
            memory.label(self._masks, "positions of the mask")
        memory.label_gradients(network)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for param in self._params:
            param.grad = None

    def step(self) -> None:
        """The default for CUDA works on all parameters at once."""
        if not self._state:
            self._state = [torch.zeros_like(p) for p in self._params for _ in range(2)]
            self._memory.label(self._state, "optimizer state")
        torch._foreach_sqrt(self._state[::2])


class _Loop(PublishedLoop):
    """The loop without a number to read."""

    def _read(self, loss: Tensor) -> float:
        return 0.0


def _published(teacher: Teacher, config: PeckerConfig, memory: LiveMemory) -> Any:
    phi = teacher.copy()
    objective = teacher.objective(config, "cpu", network=phi)

    def make(network: nn.Module, mask: object, _: float) -> Any:
        return _Adam(network, mask is not None, memory)

    loop = _Loop(objective, teacher, "a mask", make)
    for network in (phi, loop.generator, loop.pseudo_score):
        memory.label(network.parameters(), "weights")
    if loop.average is not None:
        memory.label(loop.average.parameters(), "weight average")
    inputs = _inputs(config, teacher.network.sample_shape)
    size, label = config.batch_size, inputs.labels.student[: config.batch_size]

    def term(draws: Draws, first: int) -> Term:
        rows = draws[first : first + size]
        return Term(rows.noise, rows.e, rows.t, label, label)

    phases = tuple(
        (term(draws, 0), term(draws, size)) for draws in (inputs.pseudo_score, inputs.generator)
    )
    loop.iterate(phases)  # the moments are there from its end on, the gradients stay
    loop.iterate(phases)
    return loop
