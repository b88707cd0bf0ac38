"""BaselineTrainer: one network forgets by one of the `method`s and keeps its many steps.

The loop is `Run.run`; an iteration is draw -> backward passes of both terms -> step -> average.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distributed import Ranks
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.objective import MethodObjective
from pecker_fast.methods.real_images import BaselineObjective
from pecker_fast.methods.redirect import RedirectObjective
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.learner import masked_adamw
from pecker_fast.runs.live_memory import WEIGHTS
from pecker_fast.runs.masked import MaskedRun
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.rows import Rows
from pecker_fast.runs.run import Stateful, fused_blocks

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["BaselineTrainer", "method_objective"]


def method_objective(
    model: ModelFolder | PipelineFolder,
    config: BaselineConfig,
    images: ImageSet | None,
    device: torch.device | None = None,
) -> MethodObjective[Any]:
    """What a method minimises.

    Args:
        model: The model that must forget; a pipeline where `config.text` says what.
        config: The run.
        images: What the model was trained on; None where `config.data_free`.
        device: None = where the network is.

    Raises:
        PeckerError: Images, classes, prompts or a schedule that do not fit.
    """
    if config.data_free:
        return RedirectObjective(model, config, device)
    assert images is not None and not isinstance(model, PipelineFolder)  # `text` is data_free
    return BaselineObjective(model, images, config, device)


class BaselineTrainer(MaskedRun[list[Rows]]):
    """Lets a model forget a class or a concept and keep its many steps."""

    config: BaselineConfig
    lower = "optimizer.lr"

    def __init__(
        self,
        objective: MethodObjective[Any],
        *,
        mask: SaliencyMask | None = None,
        run_directory: RunDirectory | None = None,
        progress: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        """Find the mask, or take up the run that the directory holds.

        Args:
            objective: The model, the loss and the configuration.
            mask: Instead of the one that `config.mask` describes.
            run_directory: Where checkpoints go. None = nothing is written.
            progress: Show progress bars.
            ranks: The processes that share the run, each of which makes a trainer like this one;
                only the first has the run directory. None = this process alone.

        Raises:
            PeckerError: A mask of another model, or a directory that holds another run.
        """
        config, original = objective.config, objective.original
        super().__init__(
            config,
            objective.device,
            original,
            objective.identity,
            directory=run_directory,
            ranks=ranks,
            title=config.method if progress else None,
        )
        self._objective = objective
        # nn.Module's `to`: diffusers' own warns of every cast.
        network = nn.Module.to(copy.deepcopy(original), self.device, objective.dtype)
        self._network = network.requires_grad_(True)
        self._blocks = fused_blocks(lambda: self._network, config.accelerate, self.device)
        shown = self._title is not None
        salient = self._settle_mask(
            mask, lambda: objective.find_mask(self._network, progress=shown)
        )
        options = config.optimizer
        self.learner = self._learn(
            self._network, salient, options.lr, masked_adamw(options), options.clip_grad_norm
        )
        self._start_average()
        self.begin()

    @property
    def notes(self) -> list[str]:
        """How iterations are run, what it is told, and what to know of the result."""
        blocks, *warnings = super().notes
        return [blocks, *self._objective.notes, *warnings]

    @property
    def network(self) -> nn.Module:
        """The network that forgets."""
        return self._network

    @property
    def terms(self) -> Sequence[str]:
        """Of the method's loss."""
        return self._objective.terms

    def draw(self, random: IterationRandom) -> list[Rows]:
        """What each term learns from."""
        return [batch[self.rows] for batch in self._objective.batches(random)]

    def advance(self, batch: list[Rows]) -> list[Tensor]:
        """One optimizer step."""
        objective, learner = self._objective, self.learner
        learner.learn()
        means: dict[str, list[Tensor]] = {term: [] for term in objective.terms}
        for number, found in enumerate(objective.losses_by_pass(self._network, batch), start=1):
            if number == objective.passes:
                learner.before_last_backward()
            parts = []
            for term, losses in found.items():
                parts.append(losses.sum() * (objective.weight(term) / self.config.batch_size))
                means[term].append(losses.detach().mean())
            # Backward at once: the graph of one pass lives at a time.
            torch.autograd.backward(parts)
        learner.step()
        learner.rest()
        if self._ema is not None:
            self._ema.update()
        return [torch.stack(values).mean() for values in means.values()]

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """The one network."""
        yield "", self._network

    def held(self) -> Iterator[tuple[str, Iterable[Tensor]]]:
        """The original too, where targets are looked up."""
        yield from super().held()
        if self._objective.frozen is not None:
            yield WEIGHTS, self._objective.frozen.parameters()

    def parts(self) -> Mapping[str, Stateful]:
        """Network, optimizer, average."""
        parts: dict[str, Stateful] = {"network": self._network, "optimizer": self.learner}
        return parts if self._ema is None else {**parts, "ema": self._ema}
