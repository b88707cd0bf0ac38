"""A run that changes a model under a mask: what PECKER and the methods on real images share."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FrozenCheck, check_frozen
from pecker_fast.patches.patch import network_digest
from pecker_fast.runs.config import MaskChoice, MaskedConfig
from pecker_fast.runs.directory import RunDirectory, mask_state
from pecker_fast.runs.ema import SalientEma, slow_average
from pecker_fast.runs.learner import Learner, MakeOptimizer
from pecker_fast.runs.run import Identity, Run

__all__ = ["MaskedRun", "choose_mask"]

Batch = TypeVar("Batch")


class MaskedRun(Run[Batch]):
    """A run that changes the salient entries of a network and no other.

    Attributes:
        config: The constants.
        start: The network as it was given, in its own precision. Not to be changed.
        mask: The mask in use.
        ever_salient: Union of all masks so far; outside of it nothing has ever changed.
        learner: Of the network under the mask.
        finding_s: Seconds that the mask took; 0 where it was given, or found by an earlier start.
    """

    config: MaskedConfig
    mask: SaliencyMask
    ever_salient: SaliencyMask
    learner: Learner
    _ema: SalientEma | None

    def __init__(
        self,
        config: MaskedConfig,
        device: torch.device,
        start: nn.Module,
        identity: Identity,
        *,
        directory: RunDirectory | None,
        ranks: Ranks | None,
        title: str | None,
    ) -> None:
        """As `Run`; `start` is the network before it learns."""
        super().__init__(config, device, identity, directory=directory, ranks=ranks, title=title)
        self.start = start
        self._blocks = ""  # `fused_blocks` says
        self.finding_s = 0.0

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network under the mask, its weights in place."""

    @property
    def notes(self) -> list[str]:
        """How iterations are run and what to know of the result, in lines to show."""
        return [self._blocks, *self.moved, *slow_average(self.config.ema.decay, self.config.length)]

    def erased_network(self, *, over: bool = False) -> nn.Module:
        """The result: the network in eval mode, averaged where `ema.decay` is set.

        A network of its own in the precision of the original, whose frozen entries it has bit for
        bit; the salient ones are as precise as the run knows them.

        Args:
            over: The run is, and its network may become the result: on a CPU that saves a copy.
        """
        network = self.network
        dtype = next(network.parameters()).dtype
        same = next(self.start.parameters()).dtype == dtype
        ema = self._average(0.0) if self._ema is None else self._ema
        memory: dict[int, nn.Parameter] = {}
        if over and same and self.device.type == "cpu":
            memory = {
                id(param): nn.Parameter(network.get_parameter(name).data)
                for name, param in self.start.named_parameters()
            }
        result = copy.deepcopy(self.start, memory).to(self.device).eval().requires_grad_(False)
        if same:
            result.load_state_dict(network.state_dict())
        ema.copy_to(result)
        return result

    def verify_frozen(self, network: nn.Module | None = None) -> FrozenCheck:
        """Compare a network with the start, bit by bit, outside all masks so far.

        Args:
            network: None = the one that is trained. Its dtype is that in which the two are
                compared.
        """
        total = FrozenCheck(0, 0, 0, 0)
        after = self.network if network is None else network
        for name, param in after.named_parameters():
            salient = torch.zeros(param.shape, dtype=torch.bool)
            if name in self.ever_salient:
                salient.view(-1)[self.ever_salient.indices[name].cpu()] = True
            before = self.start.get_parameter(name).to(param.dtype)
            # One by one: the mask and the original in another dtype need not be there as a whole.
            total += check_frozen({name: before}, {name: param}, {name: salient})
        digests = {
            "original": network_digest(self.start),
            "erased": network_digest(after),
            "mask": self.ever_salient.digest,
        }
        return replace(total, digests=digests)

    def _settle_mask(
        self, given: SaliencyMask | None, find: Callable[[], SaliencyMask]
    ) -> SaliencyMask | None:
        """Take the mask of the run that goes on, else the given one, else the one that is found.

        Returns:
            The mask; None where every entry may change.

        Raises:
            PeckerError: The run that goes on has another mask than the given one, or the mask is of
                another model.
        """
        if self._saved is None:
            begun = time.monotonic()
            mask = find() if given is None else given
            self.finding_s = time.monotonic() - begun if given is None else 0.0
            self.mask = self.ever_salient = self._agreed(mask)
        else:
            self.mask = SaliencyMask(**self._saved["mask"])
            self.ever_salient = SaliencyMask(**self._saved["ever_salient"])
            if self.ever_salient == self.mask:  # one object: its positions are on the device once
                self.ever_salient = self.mask
            if given not in (None, self.mask):
                where = "the run directory" if self._directory is None else self._directory.path
                raise PeckerError(
                    f"{where} holds a run under another mask; resume it with the mask that it was "
                    "started with, or choose another directory"
                )
        self.mask.check(self.network)
        dense = self.mask.nnz == sum(p.numel() for p in self.network.parameters())
        return None if dense else self.mask

    def _agreed(self, mask: SaliencyMask) -> SaliencyMask:
        """The first process's: gradients on another card may rank two entries the other way."""
        if self._ranks.alone:
            return mask
        return SaliencyMask(**self._ranks.broadcast(mask_state(mask)))

    def _learn(
        self,
        network: nn.Module,
        mask: SaliencyMask | None,
        lr: float,
        make_optimizer: MakeOptimizer,
        clip_norm: float | None = None,
    ) -> Learner:
        """A `Learner` of this run."""
        learner = Learner(
            network,
            mask,
            lr,
            make_optimizer,
            clip_norm=clip_norm,
            backend=self.config.optimizer.backend,
            ranks=self._ranks,
        )
        self.learners.append(learner)
        return learner

    def _start_average(self) -> None:
        """Average what is salient, where `ema.decay` is set. Not before there is a learner."""
        decay = self.config.ema.decay
        self._ema = None if decay is None else self._average(decay)

    def _average(self, decay: float) -> SalientEma:
        backend = self.config.optimizer.backend
        return SalientEma(self.network, self.ever_salient, decay, backend, self.learner.masters)

    def _state(self) -> dict[str, Any]:
        masks = {"mask": mask_state(self.mask), "ever_salient": mask_state(self.ever_salient)}
        return {**super()._state(), **masks}

    def _describe(self) -> None:
        super()._describe()
        if self._directory is not None:
            self._directory.write_mask(self.mask, self._identity["model"])


def choose_mask(
    choice: MaskChoice,
    network: nn.Module,
    seed: int,
    find_scores: Callable[[], Mapping[str, Tensor]],
) -> SaliencyMask:
    """The mask that a configuration describes, over the parameters that require a gradient.

    `find_scores` makes a score for each entry; it is called for a mask by saliency only.
    """
    if choice.kind == "full":
        return SaliencyMask.full(network)
    how: Any = choice.model_dump(include={"density", "scope", "granularity", "block_size"})
    if choice.kind == "random":
        return SaliencyMask.random(network, seed=seed, **how)
    return SaliencyMask.from_scores(find_scores(), **how)
