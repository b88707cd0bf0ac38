"""PeckerTrainer: score forgetting distillation under a saliency mask, as one readable loop.

labels -> noise -> pseudo-score step -> generator step -> average -> log. The trainer knows nothing
of kernels and the optimizer nothing of diffusion. All randomness of an iteration comes from
(seed, iteration), so a run that is killed and started again ends with the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pecker_fast.distill.checkpoint import RunDirectory, fingerprint
from pecker_fast.distill.conditions import Conditions
from pecker_fast.distill.config import NetworkSection, PeckerConfig
from pecker_fast.distill.ema import SalientEma
from pecker_fast.distill.learner import Learner, MakeOptimizer, masked_adamw
from pecker_fast.distill.losses import term_weights
from pecker_fast.distill.mask_finding import find_mask
from pecker_fast.distill.metrics import LossRecord, Metrics, open_tensorboard
from pecker_fast.distill.objective import DiffusionModel, Objective
from pecker_fast.distill.randomness import TRAINING, IterationRandom
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.frozen import FrozenCheck, check_frozen
from pecker_fast.mask import SaliencyMask

__all__ = ["PeckerTrainer"]


class PeckerTrainer:
    """Makes a one-step generator out of a diffusion model and lets it forget a class.

    Attributes:
        generator: theta, the network that forgets.
        pseudo_score: psi, which follows the generator.
        mask: The mask in use.
        ever_salient: Union of all masks so far; outside of it nothing has ever changed.
        iteration: Iterations that are done.
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
    ) -> None:
        """Find the mask, or take up the run that the directory holds.

        Args:
            objective: The teacher, the losses and the configuration.
            generator: Start of theta, trained in place. None = a copy of the teacher.
            pseudo_score: Start of psi, trained in place. None = a copy of the teacher.
            mask: Instead of the one that `config.mask` describes.
            run_directory: Where checkpoints go. None = nothing is written.
            make_optimizer: (network, mask, lr) -> optimizer. None = `MaskedAdamW`.
            progress: Show progress bars.

        Raises:
            PeckerError: A mask of another model, or a directory that holds another run.
        """
        teacher, config = objective.teacher, objective.config
        if mask is not None and config.mask.refresh_every:
            raise PeckerError("a given mask cannot be refreshed: set mask.refresh_every to 0")
        if config.logging.tensorboard and run_directory is None:
            raise PeckerError("logging.tensorboard needs a run directory to write to")
        self.config = config
        self.generator = _copy_of(teacher) if generator is None else generator
        self.pseudo_score = _copy_of(teacher) if pseudo_score is None else pseudo_score
        if len({teacher, self.generator, self.pseudo_score}) < 3:
            raise PeckerError(
                "teacher, generator and pseudo-score must be three networks, of which the last two "
                "are trained in place; pass copies (copy.deepcopy)"
            )
        self.iteration = 0
        self._objective = objective
        self._directory = run_directory
        self._progress = progress
        # The teacher never changes, so a generator that starts as its copy needs no second one.
        start = teacher if generator is None else copy.deepcopy(generator)
        self._start = dict(start.named_parameters())
        self._identity = "" if run_directory is None else fingerprint(teacher, start)

        saved = self._saved_run(mask)
        if saved is not None:
            self.mask = SaliencyMask(**saved["mask"])
            self.ever_salient = SaliencyMask(**saved["ever_salient"])
        else:
            self.mask = self.ever_salient = self._find_mask() if mask is None else mask
        self._dense = self.mask.nnz == sum(p.numel() for p in self.generator.parameters())
        generator_mask = None if self._dense else self.mask
        pseudo_score_mask = generator_mask if config.mask.apply == "both" else None
        make = make_optimizer or masked_adamw(config)
        self._theta = Learner(self.generator, generator_mask, config.generator.lr, make, config)
        self._psi = Learner(
            self.pseudo_score, pseudo_score_mask, config.pseudo_score.lr, make, config
        )
        self._ema = None
        if config.ema.decay is not None:
            backend = config.optimizer.backend
            self._ema = SalientEma(self.generator, self.ever_salient, config.ema.decay, backend)
        if saved is not None:
            self._load(saved)
        if run_directory is not None:
            run_directory.write_config(config.to_yaml())
            run_directory.write_mask(self.mask)

    @classmethod
    def from_model(
        cls, model: DiffusionModel, config: PeckerConfig, **options: Any
    ) -> PeckerTrainer:
        """A trainer for a model folder; `options` are the constructor's keyword arguments.

        Raises:
            PeckerError: A class or a time constant that the model does not have, and as above.
        """
        return cls(Objective.from_model(model, config), **options)

    def run(self) -> Iterator[Metrics]:
        """Train until `config.iterations`, one iteration per item; saves as it goes.

        Raises:
            PeckerError: A loss or a weight is not finite (nothing of it is saved), or the disk is
                full. The last checkpoint stays.
        """
        logging, total = self.config.logging, self.config.iterations
        record = LossRecord(logging.every, self._objective.device)
        board = None
        if logging.tensorboard and self._directory is not None:
            board = open_tensorboard(self._directory.path, self.iteration)
        bar = tqdm(
            total=total,
            initial=self.iteration,
            desc="distill",
            unit="it",
            disable=not self._progress,
        )
        try:
            while self.iteration < total:
                pseudo_score_losses, generator_losses = self._iterate()
                self.iteration += 1
                record.add(self.iteration, pseudo_score_losses, generator_losses)
                save = self.iteration == total or self.iteration % logging.checkpoint_every == 0
                losses = None
                if save or self.iteration % logging.every == 0:
                    losses = self._read(record)
                    bar.set_postfix({name: f"{value:.4g}" for name, value in losses.items()})
                if board is not None and losses is not None:
                    for name, value in losses.items():
                        board.add_scalar(f"loss/{name}", value, self.iteration)
                if save:
                    self.save()
                bar.update()
                yield Metrics(self.iteration, losses)
        finally:
            bar.close()
            if board is not None:
                board.close()

    def ema_generator(self) -> nn.Module:
        """The result: a copy of the generator in eval mode, averaged where `ema.decay` is set."""
        network = copy.deepcopy(self.generator).eval()
        if self._ema is not None:
            self._ema.copy_to(network)
        return network

    def verify_frozen(self, network: nn.Module | None = None) -> FrozenCheck:
        """Compare a network with the generator's start, bit by bit, outside all masks so far.

        Args:
            network: None = the generator.
        """
        after = self.generator if network is None else network
        return check_frozen(
            self._start, dict(after.named_parameters()), self.ever_salient.to_dense()
        )

    def save(self) -> None:
        """Check the weights and write a checkpoint; call it between two iterations.

        Without a run directory only the check is left.

        Raises:
            PeckerError: A weight is not finite, or the disk is full. The last checkpoint stays.
        """
        for kind, network in (("generator", self.generator), ("pseudo_score", self.pseudo_score)):
            for name, param in network.named_parameters():
                if not bool(torch.isfinite(param).all()):
                    raise PeckerError(
                        f"the {kind} weight {name!r} is not finite after iteration "
                        f"{self.iteration}: stopped; {self._remedy()}"
                    )
        if self._directory is None:
            return
        state = {
            "identity": self._identity,
            "config": self.config.flat(),
            "mask": _mask_state(self.mask),
            "ever_salient": _mask_state(self.ever_salient),
            "generator": self._theta.state_dict(),
            "pseudo_score": self._psi.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
        }
        self._directory.save(self.iteration, state)

    # ---- one iteration

    def _iterate(self) -> tuple[Tensor, Tensor]:
        """One iteration; returns the losses of pseudo-score and generator, (2B,) each."""
        config, objective = self.config, self._objective
        self._refresh_mask()
        random = IterationRandom(config.seed, self.iteration, objective.device, TRAINING)
        labels = objective.conditions.draw(config.batch_size, random.generator)
        with random.global_streams():
            shared = None
            if config.share_generator_pass:
                self._theta.learn()
                noise = objective.draw(random, len(labels)).noise
                shared = objective.sample(self.generator, noise, labels)
            pseudo_score_losses = self._pseudo_score_phase(labels, random, shared)
            generator_losses = self._generator_phase(labels, random, shared)
        if self._ema is not None:
            self._ema.update()
        return pseudo_score_losses, generator_losses

    def _pseudo_score_phase(
        self, labels: Conditions, random: IterationRandom, shared: Tensor | None
    ) -> Tensor:
        """The pseudo-score network learns to denoise the generator's present samples."""
        draws = self._objective.draw(random, len(labels))
        weight = self._weights(self.config.pseudo_score, draws.e)
        self._psi.learn()
        losses = []
        for rows in self._slices():
            part = draws[rows], labels[rows]
            with torch.no_grad():
                x_g = (
                    self._objective.sample(self.generator, part[0].noise, part[1])
                    if shared is None
                    else shared.detach()
                )
            loss = self._objective.pseudo_score_loss(self.pseudo_score, x_g, *part)
            (weight[rows] * loss).sum().backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self._psi.step(self.iteration)
        self._psi.rest()
        return torch.cat(losses)

    def _generator_phase(
        self, labels: Conditions, random: IterationRandom, shared: Tensor | None
    ) -> Tensor:
        """The generator learns from teacher and pseudo-score: same labels, fresh noise."""
        draws = self._objective.draw(random, len(labels))
        weight = self._weights(self.config.generator, draws.e)
        self._theta.learn()
        losses = []
        for rows in self._slices():
            part = draws[rows], labels[rows]
            x_g = (
                self._objective.sample(self.generator, part[0].noise, part[1])
                if shared is None
                else shared
            )
            loss = self._objective.generator_loss(self.pseudo_score, x_g, *part)
            (weight[rows] * loss).sum().backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self._theta.step(self.iteration)
        self._theta.rest()
        return torch.cat(losses)

    def _weights(self, section: NetworkSection, like: Tensor) -> Tensor:
        size = self.config.batch_size
        return term_weights(section.lambda_remain, section.lambda_forget, size, like)

    def _slices(self) -> list[slice]:
        """Rows of the 2B samples that pass through the networks together."""
        rows = 2 * self.config.batch_size
        step = self.config.micro_batch or rows
        return [slice(first, first + step) for first in range(0, rows, step)]

    # ---- masks

    def _find_mask(self) -> SaliencyMask:
        return find_mask(
            self._objective,
            self.generator,
            self.pseudo_score,
            iteration=self.iteration,
            progress=self._progress,
        )

    def _refresh_mask(self) -> None:
        """Every `mask.refresh_every` iterations: a new mask at the generator's present weights."""
        every = self.config.mask.refresh_every
        if not every or self._dense or self.iteration == 0 or self.iteration % every:
            return
        self._theta.open_for_scores()
        self.mask = self._find_mask()
        self.ever_salient |= self.mask
        self._theta.set_mask(self.mask)
        if self.config.mask.apply == "both":
            self._psi.set_mask(self.mask)
        if self._ema is not None:
            self._ema.extend(self.ever_salient)
        if self._directory is not None:
            self._directory.write_mask(self.mask)

    # ---- resuming

    def _saved_run(self, given_mask: SaliencyMask | None) -> dict[str, Any] | None:
        """The run that the directory holds, if there is one.

        Raises:
            PeckerError: It is a run of another model, configuration or mask.
        """
        saved = None if self._directory is None else self._directory.load()
        if saved is None or self._directory is None:
            return None
        where = self._directory.path
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
        self._theta.load_state_dict(saved["generator"])
        self._psi.load_state_dict(saved["pseudo_score"])
        if self._ema is not None:
            self._ema.load_state_dict(saved["ema"])

    def _read(self, record: LossRecord) -> dict[str, float]:
        try:
            return record.read()
        except PeckerError as error:
            raise PeckerError(f"{error}: stopped; {self._remedy()}") from None

    def _remedy(self) -> str:
        saved = [] if self._directory is None else self._directory.iterations()
        kept = (
            f"the checkpoint of iteration {saved[-1]} is intact" if saved else "nothing was saved"
        )
        return f"{kept}; lower generator.lr and pseudo_score.lr"


def _copy_of(teacher: nn.Module) -> nn.Module:
    return copy.deepcopy(teacher).requires_grad_(True)


def _mask_state(mask: SaliencyMask) -> dict[str, Any]:
    """The constructor's arguments, in types that a checkpoint may hold."""
    return {
        "indices": dict(mask.indices),
        "shapes": {name: list(shape) for name, shape in mask.shapes.items()},
        "granularity": mask.granularity,
        "block_size": mask.block_size,
    }
