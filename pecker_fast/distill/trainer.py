"""PeckerTrainer: score forgetting distillation under a saliency mask, as one readable loop.

draw -> iteration (pseudo-score step, generator step, average) -> log. The trainer knows nothing of
kernels and the optimizer nothing of diffusion. All randomness of an iteration comes from
(seed, iteration), so a run that is killed and started again ends with the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.graph import CudaCapture, IterationGraph
from pecker_fast.distill.iteration import Iteration
from pecker_fast.distill.mask_finding import find_mask
from pecker_fast.distill.network_set import NetworkSet, Role, SeparateNetworks, SharedNetworks
from pecker_fast.distill.objective import DiffusionModel, Objective
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FrozenCheck, check_frozen
from pecker_fast.nn.accelerate import accelerate_
from pecker_fast.runs.checkpoint import RunDirectory, agreed_mask, fingerprint, mask_state
from pecker_fast.runs.ema import SalientEma, slow_average
from pecker_fast.runs.learner import Learner, MakeOptimizer, masked_adamw
from pecker_fast.runs.loop import Loop
from pecker_fast.runs.metrics import LOSS_NAMES, LossRecord, Metrics
from pecker_fast.runs.randomness import TRAINING, IterationRandom
from pecker_fast.runs.stopwatch import Stopwatch

__all__ = ["PeckerTrainer"]


class PeckerTrainer:
    """Makes a one-step generator out of a diffusion model and lets it forget a class.

    Attributes:
        mask: The mask in use.
        ever_salient: Union of all masks so far; outside of it nothing has ever changed.
        start: The generator as it was given, in its own precision. Not to be changed.
        iteration: Iterations that are done.
        stopwatch: Seconds of training so far, over all starts of the run.
        config: The run.
    """

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
            objective: The teacher, the losses and the configuration.
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
        config = objective.config
        if mask is not None and config.mask.refresh_every:
            raise PeckerError("a given mask cannot be refreshed: set mask.refresh_every to 0")
        self._ranks = ranks = ranks or Ranks()
        config.check_start(ranks.size, sum(n is not None for n in (generator, pseudo_score)))
        if config.logging.tensorboard and run_directory is None and ranks.is_first:
            raise PeckerError("logging.tensorboard needs a run directory to write to")
        self.config = config
        self.iteration = 0
        self.stopwatch = Stopwatch()
        self._objective = objective
        self._directory = run_directory
        rates = "generator.lr and pseudo_score.lr"
        self._loop = Loop(self, config.logging, run_directory, lower=rates)
        self._progress = progress and ranks.is_first
        # The teacher never changes, so a generator that starts as its copy needs no second one.
        self.start = objective.original if generator is None else copy.deepcopy(generator)
        self._identity = ""
        if run_directory is not None or not ranks.alone:
            self._identity = fingerprint(objective.original, self.start)
            ranks.check_same(self._identity, "another model")
            ranks.check_same(config.to_yaml(), "another configuration")

        given = objective.original if pseudo_score is None else pseudo_score
        # References, unless psi is trained in place: then they are at its precision anyway.
        self._pseudo_score_start = dict(given.named_parameters())

        saved = ranks.first(lambda: self._saved_run(mask))
        self._blocks = self._accelerated(objective)
        self._networks: NetworkSet = SeparateNetworks(
            objective.teacher, self._working(generator), self._working(pseudo_score)
        )
        if saved is not None:
            self.mask = SaliencyMask(**saved["mask"])
            self.ever_salient = SaliencyMask(**saved["ever_salient"])
            if self.ever_salient == self.mask:  # one object: its positions are on the device once
                self.ever_salient = self.mask
        else:
            self.mask = self.ever_salient = (
                self._find_mask() if mask is None else agreed_mask(mask, ranks)
            )
        self.mask.check(self.generator)
        self._dense = self.mask.nnz == sum(p.numel() for p in self.generator.parameters())
        generator_mask = None if self._dense else self.mask
        pseudo_score_mask = generator_mask if config.mask.apply == "both" else None
        started_alike = generator is None and pseudo_score is None
        if pseudo_score_mask is not None and config.mask.share_weights and started_alike:
            self._networks = SharedNetworks(
                objective.own_teacher(), self.ever_salient, config.optimizer.backend
            )

        make = make_optimizer or masked_adamw(config)
        theta, psi = self.generator, self.pseudo_score
        self._theta = Learner(theta, generator_mask, config.generator.lr, make, config, ranks)
        self._psi = Learner(psi, pseudo_score_mask, config.pseudo_score.lr, make, config, ranks)
        self._refine_masters()
        self._ema = None
        if config.ema.decay is not None:
            self._ema = self._average(config.ema.decay)
        if saved is not None:
            self._load(saved)
        self._step = Iteration(objective, self._networks, self._psi, self._theta, self._ema, ranks)
        self._graph = IterationGraph(
            self._step.compute, (self._psi, self._theta), objective.device, self._capture()
        )
        ranks.first(self._describe_run)

    @classmethod
    def from_model(
        cls,
        model: DiffusionModel,
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
        warnings = slow_average(self.config.ema.decay, self.config.iterations)
        return [self._blocks, self._graph.reason or "one CUDA graph per iteration", *warnings]

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

    def run(self) -> Iterator[Metrics]:
        """Train until `config.iterations`, one iteration per item; saves as it goes.

        Raises:
            PeckerError: A loss or a weight is not finite (nothing of it is saved), or the disk is
                full. The last checkpoint stays.
        """
        config = self.config
        names = [name for name in LOSS_NAMES if config.halves == 2 or "remain" in name]
        record = LossRecord(
            config.logging.every, self._objective.device, self._ranks, self._step.share, names
        )

        def advance() -> None:
            self._refresh_mask()
            losses = self._iterate()
            self.iteration += 1
            record.add(self.iteration, *losses)

        title = "distill" if self._progress else None
        return self._loop.steps(advance, record, config.iterations, title)

    def ema_generator(self) -> nn.Module:
        """The result: the generator in eval mode, averaged where `ema.decay` is set.

        A network of its own in the precision of the original, whose frozen entries it has bit for
        bit; the salient ones are as precise as the run knows them.
        """
        generator = self.generator
        network = copy.deepcopy(self.start).to(self._objective.device).eval()
        network.requires_grad_(False)
        if self.config.precision != "bf16":
            network.load_state_dict(generator.state_dict())
        ema = self._average(0.0) if self._ema is None else self._ema
        ema.copy_to(network)
        return network

    def verify_frozen(self, network: nn.Module | None = None) -> FrozenCheck:
        """Compare a network with the generator's start, bit by bit, outside all masks so far.

        Args:
            network: None = the generator. Its dtype is the one in which the two are compared.
        """
        after = dict((self.generator if network is None else network).named_parameters())
        before = {name: p.to(after[name].dtype) for name, p in self.start.named_parameters()}
        return check_frozen(before, after, self.ever_salient.to_dense())

    def save(self) -> None:
        """Check the weights and write a checkpoint; call it between two iterations.

        Without a run directory only the check is left.

        Raises:
            PeckerError: A weight is not finite, or the disk is full. The last checkpoint stays.
        """
        roles: tuple[Role, ...] = ("pseudo_score", "generator")
        for kind in roles:
            self._loop.check_finite(self._networks.use(kind), kind)
        self._ranks.first(self._write)

    def _write(self) -> None:
        if self._directory is None:
            return
        state = {
            "identity": self._identity,
            "seconds": self.stopwatch.seconds,
            "config": self.config.flat(),
            "mask": mask_state(self.mask),
            "ever_salient": mask_state(self.ever_salient),
            "networks": self._networks.state_dict(),
            "generator": self._theta.state_dict(),
            "pseudo_score": self._psi.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
        }
        self._directory.save(self.iteration, state)

    def _iterate(self) -> tuple[Tensor, Tensor]:
        """One iteration; returns the losses of pseudo-score and generator, (2B,) each."""
        random = IterationRandom(
            self.config.seed,
            self.iteration,
            self._objective.device,
            TRAINING,
            self._ranks.rank,
        )
        inputs = self._step.draw(random)
        for learner in (self._psi, self._theta):
            learner.set_learning_rate(self.iteration)
        self._networks.use("generator")
        with random.global_streams():
            return self._graph.run(inputs)

    # ---- networks

    def _accelerated(self, objective: Objective) -> str:
        """Switch a copy of the teacher to fused blocks where they run; says what came of it."""
        if not self.config.accelerate:
            return "torch's blocks: accelerate is off in the configuration"
        if objective.device.type != "cuda":
            return f"torch's blocks: no fused ones on {objective.device.type}"
        return str(accelerate_(objective.own_teacher()))

    def _working(self, network: nn.Module | None) -> nn.Module:
        """A network that can be trained: the given one if it is as the teacher is, else a copy."""
        teacher = next(self._objective.teacher.parameters())
        if network is None:
            return copy.deepcopy(self._objective.teacher).requires_grad_(True)
        first = next(network.parameters())
        if (first.device, first.dtype) != (teacher.device, teacher.dtype):
            network = nn.Module.to(copy.deepcopy(network), teacher.device, teacher.dtype)
        if self.config.accelerate and teacher.is_cuda:
            accelerate_(network)
        return network

    def _refine_masters(self) -> None:
        """Masters start from the networks as they were given, not as bf16 has them."""
        if self.config.precision == "bf16":
            self._theta.refine_masters(dict(self.start.named_parameters()))
            self._psi.refine_masters(self._pseudo_score_start)

    def _capture(self) -> CudaCapture | str:
        """What captures iterations, or why none is."""
        device = self._objective.device
        if self.config.graph == "off":
            return "graph is off in the configuration"
        if device.type != "cuda":
            return f"no CUDA graph on {device.type}"
        if not self._ranks.alone:
            return "no CUDA graph with several processes: gradients are sent during it"
        return CudaCapture(device)

    def _average(self, decay: float) -> SalientEma:
        return SalientEma(
            self.generator,
            self.ever_salient,
            decay,
            self.config.optimizer.backend,
            self._theta.masters,
        )

    # ---- masks

    def _find_mask(self) -> SaliencyMask:
        found = find_mask(
            self._objective, self._networks, iteration=self.iteration, progress=self._progress
        )
        return agreed_mask(found, self._ranks)

    def _refresh_mask(self) -> None:
        """Every `mask.refresh_every` iterations: a new mask at the generator's present weights."""
        every = self.config.mask.refresh_every
        if not every or self._dense or self.iteration == 0 or self.iteration % every:
            return
        self._theta.open_for_scores()
        self.mask = self._find_mask()
        self.ever_salient |= self.mask
        self._networks.extend(self.ever_salient)
        self._theta.set_mask(self.mask)
        if self.config.mask.apply == "both":
            self._psi.set_mask(self.mask)
        self._refine_masters()
        if self._ema is not None:
            self._ema.extend(self.ever_salient)
        self._graph.reset()
        self._ranks.first(self._describe_run)

    # ---- the run directory

    def _describe_run(self) -> None:
        if self._directory is not None:
            self._directory.write_config(self.config.to_yaml())
            self._directory.write_mask(self.mask)

    def _saved_run(self, given_mask: SaliencyMask | None) -> dict[str, Any] | None:
        """The run that the directory holds, if there is one.

        Raises:
            PeckerError: It is a run of another model, configuration or mask.
        """
        saved = None if self._directory is None else self._directory.load()
        if saved is None or self._directory is None:
            return None
        where = self._directory.path
        if "networks" not in saved:
            raise PeckerError(f"{where} holds a run of another kind; choose another directory")
        if saved["identity"] != self._identity:
            raise PeckerError(
                f"{where} holds a run of another model; resume it with the model that it was "
                "started with, or choose another directory"
            )
        self.config.check_resumes(saved["config"], saved["iteration"], str(where))
        if given_mask not in (None, SaliencyMask(**saved["mask"])):
            raise PeckerError(
                f"{where} holds a run under another mask; resume it with the mask that it was "
                "started with, or choose another directory"
            )
        return saved

    def _load(self, saved: dict[str, Any]) -> None:
        self.iteration = saved["iteration"]
        self.stopwatch = Stopwatch(saved.get("seconds", 0.0))
        self._networks.load_state_dict(saved["networks"])
        self._theta.load_state_dict(saved["generator"])
        self._psi.load_state_dict(saved["pseudo_score"])
        if self._ema is not None:
            self._ema.load_state_dict(saved["ema"])
