"""BaselineTrainer: one network forgets a class on real images, as one readable loop.

draw -> remain term, forget term -> step -> average -> log. Masks, optimizer, average, randomness
and run directories are those of `PeckerTrainer`; what differs is the loss, and that the result is
still a many-step model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FrozenCheck, check_frozen
from pecker_fast.methods.mask_finding import find_mask
from pecker_fast.methods.objective import BaselineObjective
from pecker_fast.nn.accelerate import accelerate_
from pecker_fast.runs.checkpoint import RunDirectory, agreed_mask, fingerprint, mask_state
from pecker_fast.runs.ema import SalientEma, slow_average
from pecker_fast.runs.learner import Learner, MakeOptimizer, masked_adamw
from pecker_fast.runs.loop import Loop
from pecker_fast.runs.metrics import LossRecord, Metrics
from pecker_fast.runs.randomness import TRAINING, IterationRandom
from pecker_fast.runs.stopwatch import Stopwatch

__all__ = ["BaselineTrainer"]


class BaselineTrainer:
    """Lets a class-conditional diffusion model forget a class by one of the `method`s.

    Attributes:
        mask: The mask in use.
        start: The network as it was given. Not to be changed.
        network: The network that forgets.
        iteration: Iterations that are done.
        config: The run.
        notes: How iterations are run, in lines to show.
        stopwatch: Seconds of training so far, over all starts of the run.
    """

    def __init__(
        self,
        objective: BaselineObjective,
        *,
        mask: SaliencyMask | None = None,
        run_directory: RunDirectory | None = None,
        progress: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        """Find the mask, or take up the run that the directory holds.

        Args:
            objective: The model, the images, the loss and the configuration.
            mask: Instead of the one that `config.mask` describes.
            run_directory: Where checkpoints go. None = nothing is written.
            progress: Show progress bars.
            ranks: The processes that share the run, each of which makes a trainer like this one;
                only the first has the run directory. None = this process alone.

        Raises:
            PeckerError: A mask of another model, or a directory that holds another run.
        """
        config = objective.config
        self._ranks = ranks = ranks or Ranks()
        if config.batch_size < ranks.size:
            raise PeckerError(
                f"batch_size {config.batch_size} for {ranks.size} processes: each needs one image "
                "at least; raise batch_size or start fewer"
            )
        if config.logging.tensorboard and run_directory is None and ranks.is_first:
            raise PeckerError("logging.tensorboard needs a run directory to write to")
        self.config = config
        self.iteration = 0
        self.stopwatch = Stopwatch()
        self.start = objective.original
        self._objective = objective
        self._directory = run_directory
        self._loop = Loop(self, config.logging, run_directory, lower="optimizer.lr")
        self._progress = progress and ranks.is_first
        self._identity = {"model": "", "images": ""}
        if run_directory is not None or not ranks.alone:
            self._identity = {
                "model": fingerprint(self.start),
                "images": objective.data.fingerprint(),
            }
            ranks.check_same(self._identity["model"], "another model")
            ranks.check_same(self._identity["images"], "other images")
            ranks.check_same(config.to_yaml(), "another configuration")

        saved = ranks.first(lambda: self._saved_run(mask))
        self.network = nn.Module.to(copy.deepcopy(self.start), objective.device)
        self.network.requires_grad_(True)
        self.notes = [self._accelerated(), *slow_average(config.ema.decay, config.iterations)]
        if saved is not None:
            self.mask = SaliencyMask(**saved["mask"])
        else:
            self.mask = agreed_mask(self._find_mask() if mask is None else mask, ranks)
        self.mask.check(self.network)
        self._learner = self._make_learner()
        self._ema = None
        if config.ema.decay is not None:
            self._ema = SalientEma(
                self.network, self.mask, config.ema.decay, config.optimizer.backend
            )
        if saved is not None:
            self._load(saved)
        ranks.first(self._describe_run)

    def run(self) -> Iterator[Metrics]:
        """Train until `config.iterations`, one iteration per item; saves as it goes.

        Raises:
            PeckerError: A loss or a weight is not finite (nothing of it is saved), or the disk is
                full. The last checkpoint stays.
        """
        config, objective, size = self.config, self._objective, self.config.batch_size
        share = len(range(size)[self._ranks.rows(size)]) / size
        record = LossRecord(
            config.logging.every, objective.device, self._ranks, share, objective.terms
        )

        def advance() -> None:
            terms = self._iterate()
            self.iteration += 1
            record.add_terms(self.iteration, terms)

        title = config.method if self._progress else None
        return self._loop.steps(advance, record, config.iterations, title)

    def erased_network(self) -> nn.Module:
        """The result: the network in eval mode, averaged where `ema.decay` is set."""
        network = copy.deepcopy(self.start).to(self._objective.device).eval().requires_grad_(False)
        network.load_state_dict(self.network.state_dict())
        if self._ema is not None:
            self._ema.copy_to(network)
        return network

    def verify_frozen(self, network: nn.Module | None = None) -> FrozenCheck:
        """Compare a network (None = the one that is trained) with the start, bit by bit."""
        after = self.network if network is None else network
        return check_frozen(
            dict(self.start.named_parameters()),
            dict(after.named_parameters()),
            self.mask.to_dense(),
        )

    def save(self) -> None:
        """Check the weights and write a checkpoint; call it between two iterations.

        Without a run directory only the check is left.

        Raises:
            PeckerError: A weight is not finite, or the disk is full. The last checkpoint stays.
        """
        self._loop.check_finite(self.network)
        self._ranks.first(self._write)

    # ---- one iteration

    def _iterate(self) -> list[Tensor]:
        """One optimizer step; returns the mean of each term over this process's images."""
        objective, size = self._objective, self.config.batch_size
        random = IterationRandom(
            self.config.seed, self.iteration, objective.device, TRAINING, self._ranks.rank
        )
        # Every process draws the whole batch, so that it does not depend on how many there are.
        rows = self._ranks.rows(size)
        batches = [objective.draw(term, self.iteration, random)[rows] for term in objective.terms]
        self._learner.set_learning_rate(self.iteration)
        self._learner.learn()
        means = []
        with random.global_streams():
            for term, batch in zip(objective.terms, batches, strict=True):
                losses = objective.losses(term, self.network, batch)
                if term == objective.terms[-1]:
                    self._learner.before_last_backward()
                # Backward at once: the graph of one term lives at a time.
                loss = losses.sum() * (objective.weight(term) / size)
                loss.backward()  # type: ignore[no-untyped-call]
                means.append(losses.detach().mean())
        self._learner.step()
        self._learner.rest()
        if self._ema is not None:
            self._ema.update()
        return means

    # ---- the network, its optimizer and its mask

    def _accelerated(self) -> str:
        """Switch the network to fused blocks where they run; says what came of it."""
        if not self.config.accelerate:
            return "torch's blocks: accelerate is off in the configuration"
        if self._objective.device.type != "cuda":
            return f"torch's blocks: no fused ones on {self._objective.device.type}"
        return str(accelerate_(self.network))

    def _find_mask(self) -> SaliencyMask:
        return find_mask(self._objective, self.network, progress=self._progress)

    def _make_learner(self) -> Learner:
        learning = self.config.learning()
        dense = self.mask.nnz == sum(p.numel() for p in self.network.parameters())
        mask = None if dense else self.mask
        make = masked_adamw(learning)
        if self.config.optimizer.clip_grad_norm is not None:
            # The norm is over all entries, frozen ones too. So the learner is not told of the mask,
            # or it would leave out gradients of frozen rows; only the optimizer is.
            make, mask = _clipped(make, mask, self.config.optimizer.clip_grad_norm), None
        return Learner(
            self.network, mask, self.config.optimizer.lr, make, learning, ranks=self._ranks
        )

    # ---- the run directory

    def _describe_run(self) -> None:
        if self._directory is not None:
            self._directory.write_config(self.config.to_yaml())
            self._directory.write_mask(self.mask)

    def _write(self) -> None:
        if self._directory is None:
            return
        state = {
            "identity": self._identity,
            "config": self.config.flat(),
            "seconds": self.stopwatch.seconds,
            "mask": mask_state(self.mask),
            "network": self.network.state_dict(),
            "optimizer": self._learner.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
        }
        self._directory.save(self.iteration, state)

    def _saved_run(self, given_mask: SaliencyMask | None) -> dict[str, Any] | None:
        """The run that the directory holds, if there is one.

        Raises:
            PeckerError: It is a run of another model, other images, configuration or mask.
        """
        saved = None if self._directory is None else self._directory.load()
        if saved is None or self._directory is None:
            return None
        where = self._directory.path
        if "network" not in saved or "mask" not in saved:
            raise PeckerError(f"{where} holds a run of another kind; choose another directory")
        identity = saved["identity"]
        if identity["model"] != self._identity["model"]:
            raise PeckerError(
                f"{where} holds a run of another model; resume it with the model that it was "
                "started with, or choose another directory"
            )
        self.config.check_resumes(saved["config"], saved["iteration"], str(where))
        if identity["images"] != self._identity["images"]:
            raise PeckerError(
                f"{where} holds a run on other images; resume it with the data set that it was "
                "started with, or choose another directory"
            )
        if given_mask not in (None, SaliencyMask(**saved["mask"])):
            raise PeckerError(
                f"{where} holds a run under another mask; resume it with the mask that it was "
                "started with, or choose another directory"
            )
        return saved

    def _load(self, saved: dict[str, Any]) -> None:
        self.iteration = saved["iteration"]
        self.stopwatch = Stopwatch(saved["seconds"])
        self.network.load_state_dict(saved["network"])
        self._learner.load_state_dict(saved["optimizer"])
        if self._ema is not None:
            self._ema.load_state_dict(saved["ema"])


def _clipped(make: MakeOptimizer, mask: SaliencyMask | None, max_norm: float) -> MakeOptimizer:
    """An optimizer under `mask` that first limits the norm of all gradients, as SalUn does."""

    def make_clipped(network: nn.Module, _: SaliencyMask | None, lr: float) -> Optimizer:
        optimizer = make(network, mask, lr)
        params = list(network.parameters())

        def clip(*_: Any) -> None:
            torch.nn.utils.clip_grad_norm_(params, max_norm)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    return make_clipped
