"""PeckerTrainer: score forgetting distillation under a saliency mask.

The loop is `Run.run`; an iteration is draw -> pseudo-score step, generator step, average (file
iteration.py), through a CUDA graph where there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.graph import WARM_UP, CudaCapture, IterationGraph
from pecker_fast.distill.iteration import Iteration, IterationInputs
from pecker_fast.distill.mask_finding import find_mask
from pecker_fast.distill.network_set import (
    NetworkSet,
    Role,
    SharedNetworks,
    equal_networks,
)
from pecker_fast.distill.objective import Objective
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.nn.recomputing import recompute_blocks_
from pecker_fast.runs.digest import fingerprint
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.learner import Learner, MakeOptimizer, masked_adamw
from pecker_fast.runs.masked import MaskedRun
from pecker_fast.runs.metrics import LOSS_NAMES
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.run import Stateful, fused_blocks

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["PeckerTrainer"]


class PeckerTrainer(MaskedRun[IterationInputs]):
    """Makes a one-step generator out of a diffusion model and lets it forget a class."""

    config: PeckerConfig
    lower = "generator.lr and pseudo_score.lr"

    def __init__(
        self,
        objective: Objective,
        *,
        generator: nn.Module | None = None,
        pseudo_score: nn.Module | None = None,
        mask: SaliencyMask | None = None,
        run_directory: RunDirectory | None = None,
        make_optimizer: MakeOptimizer | None = None,
        progress: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        """Find the mask, or take up the run that the directory holds.

        Args:
            objective: The teacher, what to forget, and the configuration.
            generator: Start of theta, trained in place where it is on the run's device and in its
                precision, else copied. None = a copy of the teacher.
            pseudo_score: Start of psi, likewise. None = a copy of the teacher.
            mask: Instead of the one that `config.mask` describes.
            run_directory: Where checkpoints go. None = nothing is written.
            make_optimizer: (network, mask, lr) -> optimizer. None = `MaskedAdamW`.
            progress: Show progress bars.
            ranks: The processes that share the run, each of which makes a trainer like this one;
                only the first has the run directory. None = this process alone.

        Raises:
            PeckerError: A mask of another model, a directory that holds another run, more processes
                than samples, or a second stage without the first.
        """
        self._objective = objective
        self._start_notes = self._check_given(generator, pseudo_score, mask)
        # The teacher never changes, so a generator that starts as its copy needs no second one.
        start = objective.original if generator is None else copy.deepcopy(generator)
        given = {
            "model": objective.original,
            "start of the generator": None if generator is None else start,
            "start of the pseudo-score network": pseudo_score,
        }
        digests = {what: network for what, network in given.items() if network is not None}
        super().__init__(
            objective.config,
            objective.device,
            start,
            lambda: {w: fingerprint(n) for w, n in digests.items()} | objective.identity(),
            directory=run_directory,
            ranks=ranks,
            title="distill" if progress else None,
        )
        psi_start = objective.original if pseudo_score is None else pseudo_score
        # References, unless psi is trained in place: then they are at its precision anyway.
        self._pseudo_score_start = dict(psi_start.named_parameters())
        theta_mask, psi_mask = self._make_networks(generator, pseudo_score, mask)
        self.learner = self._learner("generator", theta_mask, make_optimizer)
        self._psi = self._learner("pseudo_score", psi_mask, make_optimizer)
        self._refine_masters()
        self._start_average()
        self._step = Iteration(
            objective, self._networks, self._psi, self.learner, self._ema, self._ranks
        )
        self._graph = IterationGraph(
            self._step.compute, (self._psi, self.learner), self.device, self._capture()
        )
        self.begin()

    @classmethod
    def from_model(
        cls,
        model: ModelFolder,
        config: PeckerConfig,
        device: torch.device | None = None,
        **options: Any,
    ) -> PeckerTrainer:
        """A trainer for a model folder, on `device` (None = where the model is).

        `options` are the constructor's keyword arguments.

        Raises:
            PeckerError: A class or a time constant that the model does not have, and as above.
        """
        return cls(Objective.from_model(model, config, device), **options)

    @property
    def notes(self) -> list[str]:
        """How iterations are run, in lines to show: which blocks, whether in a graph, warnings."""
        blocks, *warnings = super().notes
        graph = self._graph.reason or "one CUDA graph per iteration"
        return [blocks, graph, *self._start_notes, *self._objective.notes, *warnings]

    @property
    def warm_up(self) -> int:
        """Those before the capture, and its own."""
        return 0 if self._graph.reason else WARM_UP + 1

    @property
    def generator(self) -> nn.Module:
        """theta, the network that forgets, with its weights in place."""
        return self._networks.use("generator")

    @property
    def pseudo_score(self) -> nn.Module:
        """psi, which follows the generator.

        Where all networks share one set of weights, its own are in place until `generator` is
        asked for or the run goes on.
        """
        return self._networks.use("pseudo_score")

    def ema_generator(self, *, over: bool = False) -> nn.Module:
        """The result, as `erased_network`."""
        return self.erased_network(over=over)

    # ---- the method

    @property
    def network(self) -> nn.Module:
        """The generator."""
        return self.generator

    @property
    def terms(self) -> Sequence[str]:
        """Those of `LOSS_NAMES` that this run has."""
        learns = self.config.generator
        has = {
            "pseudo_score": learns.scores,
            "generator": learns.scores,
            "one_step": learns.one_step > 0,
            "every_step": learns.every_step > 0,
        }
        terms = [name for name in LOSS_NAMES if has[name.split("/")[0]]]
        return [name for name in terms if self.config.halves == 2 or "remain" in name]

    def draw(self, random: IterationRandom) -> IterationInputs:
        """Labels and noise."""
        return self._step.draw(random)

    def advance(self, batch: IterationInputs) -> list[Tensor]:
        """A new mask where one is due, then both phases."""
        self._refresh_mask()
        self._networks.use("generator")
        phases = self._graph.run(batch)
        return [half.mean() for losses in phases for half in losses.chunk(self.config.halves)]

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Pseudo-score and generator."""
        roles: tuple[Role, ...] = ("pseudo_score", "generator")
        for role in roles:
            yield role, self._networks.use(role)

    def parts(self) -> Mapping[str, Stateful]:
        """Networks, both optimizers, average."""
        parts: dict[str, Stateful] = {
            "networks": self._networks,
            "generator": self.learner,
            "pseudo_score": self._psi,
        }
        return parts if self._ema is None else {**parts, "ema": self._ema}

    def held(self) -> Iterator[tuple[str, Iterable[Tensor]]]:
        """The teacher's weights too, and what is kept of networks that share theirs."""
        yield from super().held()
        yield from self._networks.held()

    # ---- how it starts

    def _check_given(
        self,
        generator: nn.Module | None,
        pseudo_score: nn.Module | None,
        mask: SaliencyMask | None,
    ) -> list[str]:
        """Refuse what a run cannot start from; what there is to say of the rest."""
        objective, config = self._objective, self._objective.config
        given = [network for network in (generator, pseudo_score) if network is not None]
        if len({objective.original, *given}) <= len(given):
            raise PeckerError(
                "teacher, generator and pseudo-score must be three networks, of which the last two "
                "are trained in place; pass copies (copy.deepcopy)"
            )
        notes = config.check_start(generator is not None, pseudo_score is not None)
        if mask is None:
            config.check_saliency(pseudo_score is not None)
        elif config.mask.refresh_every:
            raise PeckerError("a given mask cannot be refreshed: set mask.refresh_every to 0")
        return notes

    def _make_networks(
        self,
        generator: nn.Module | None,
        pseudo_score: nn.Module | None,
        mask: SaliencyMask | None,
    ) -> tuple[SaliencyMask | None, SaliencyMask | None]:
        """The three networks, and the masks of theta and psi: None where every entry may change."""
        objective, config = self._objective, self.config
        if config.recompute_blocks:
            recompute_blocks_(objective.own_teacher())
        self._blocks = fused_blocks(
            partial(objective.own_teacher, weights=False), config.accelerate, self.device
        )
        both = config.mask.apply == "both"
        share = both and config.mask.share_weights and generator is None and pseudo_score is None
        self._networks = (  # one set of weights needs the mask
            equal_networks(objective.teacher) if share else self._separate(generator, pseudo_score)
        )
        settled = self._settle_mask(mask, self._find_mask)
        self._refresh_every = 0 if settled is None else config.mask.refresh_every
        if share and settled is None:
            self._networks = self._separate(None, None)
        elif share:
            self._networks = SharedNetworks(
                objective.own_teacher(), self.ever_salient, config.optimizer.backend
            )
        return settled, settled if both else None

    def _separate(self, generator: nn.Module | None, pseudo_score: nn.Module | None) -> NetworkSet:
        """Three networks, of which the last two start as given."""
        teacher, start = self._objective.teacher, None
        if generator is not None and self.config.generator.one_step:
            start = _like(copy.deepcopy(self.start), teacher).eval().requires_grad_(False)
        theta, psi = self._working(generator), self._working(pseudo_score)
        if self.config.recompute_blocks:  # copies of the teacher do
            for network in (theta, psi):
                recompute_blocks_(network)
        return NetworkSet(teacher, theta, psi, start)

    def _working(self, network: nn.Module | None) -> nn.Module:
        """A network that can be trained: the given one if it is as the teacher is, else a copy."""
        teacher = self._objective.teacher
        if network is None:
            return copy.deepcopy(teacher).requires_grad_(True)
        ours, theirs = next(network.parameters()), next(teacher.parameters())
        if (ours.device, ours.dtype) != (theirs.device, theirs.dtype):
            network = _like(copy.deepcopy(network), teacher)
        working = network
        fused_blocks(lambda: working, self.config.accelerate, theirs.device)
        return working

    def _learner(
        self, role: Role, mask: SaliencyMask | None, make_optimizer: MakeOptimizer | None
    ) -> Learner:
        """What steps a network, as its section of the configuration says."""
        config = self.config
        section = config.generator if role == "generator" else config.pseudo_score
        lr = section.lr
        if mask is not None and config.mask.scale_lr:  # a step as long as a dense one
            lr *= mask.density**-0.5
        if make_optimizer is None:
            unlimited = {} if section.clip else {"clip_value": None}
            make_optimizer = masked_adamw(config.optimizer.model_copy(update=unlimited))
        return self._learn(self._networks.use(role), mask, lr, make_optimizer)

    def _refine_masters(self) -> None:
        """Masters start from the networks as they were given, not as bf16 has them."""
        if self.config.precision == "bf16":
            self.learner.refine_masters(dict(self.start.named_parameters()))
            self._psi.refine_masters(self._pseudo_score_start)

    def _capture(self) -> CudaCapture | str:
        """What captures iterations, or why none is."""
        if self.config.graph == "off":
            return "graph is off in the configuration"
        if self.device.type != "cuda":
            return f"no CUDA graph on {self.device.type}"
        if not self._ranks.alone:
            return "no CUDA graph with several processes: gradients are sent during it"
        return CudaCapture(self.device)

    # ---- masks

    def _find_mask(self) -> SaliencyMask:
        shown = self._title is not None
        return find_mask(self._objective, self._networks, iteration=self.iteration, progress=shown)

    def _refresh_mask(self) -> None:
        """Every `mask.refresh_every` iterations: a new mask at the generator's present weights."""
        every = self._refresh_every
        if not every or self.iteration == 0 or self.iteration % every:
            return
        self.learner.open_for_scores()
        self.mask = self._agreed(self._find_mask())
        self.ever_salient |= self.mask
        self._networks.extend(self.ever_salient)
        self.learner.set_mask(self.mask)
        if self.config.mask.apply == "both":
            self._psi.set_mask(self.mask)
        self._refine_masters()
        if self._ema is not None:
            self._ema.extend(self.ever_salient)
        self._graph.reset()
        self._ranks.first(self._describe)


def _like(network: nn.Module, other: nn.Module) -> nn.Module:
    """In the dtype of the other one, and where that is."""
    first = next(other.parameters())
    return nn.Module.to(network, first.device, first.dtype)  # diffusers' own warns of every cast
