"""What stays the same through a run of a method: the original network and the terms of the loss."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from pecker_fast.distill.networks import compute_dtype, model_predictor, with_autocast
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.scores import CONTRASTS, LossFn, Reduction, saliency_scores
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.progress import each
from pecker_fast.runs.digest import digest_of, fingerprint
from pecker_fast.runs.masked import choose_mask
from pecker_fast.runs.randomness import SALIENCY, IterationRandom
from pecker_fast.runs.rows import Rows

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["MethodObjective", "Term"]

Term: TypeAlias = Literal["remain", "forget"]
B = TypeVar("B", bound=Rows)


class MethodObjective(ABC, Generic[B]):
    """The terms of a method's loss, for one model and one configuration.

    Attributes:
        original: The network as it was given: put in eval mode, its parameters stop requiring
            gradients, and nothing else of it changes.
        schedule: Its noise schedule.
        config: The run, its classes by index.
        device: Where the run takes place.
        dtype: Of images, noise and the network that learns.
        notes: What to know of what it is told, in lines to show.
        pairs: The classes to forget, and the class in the place of each; None where there is none.
            Of prompts none.
        terms: The terms that the method has, in the order in which they are drawn and computed.
        passes: Forward passes with a graph in an iteration.
        frozen: The original on `device` in `dtype`, where targets are looked up. None where none
            are.
    """

    reduction: ClassVar[Reduction]  # of the saliency, see `saliency_scores`
    clip_saliency: ClassVar[float | None]  # the norm of a gradient of it at most
    config: BaselineConfig
    notes: Sequence[str] = ()
    frozen: nn.Module | None = None
    pairs: tuple[tuple[int, int | None], ...]
    terms: list[Term]
    passes: int

    def __init__(
        self,
        model: ModelFolder | PipelineFolder,
        config: BaselineConfig,
        device: torch.device | None,
    ) -> None:
        """Keep what every method needs.

        Args:
            model: The model that must forget; a pipeline where `config.text` says what.
            config: The run.
            device: None = where the network is.
        """
        self.original: nn.Module = model.network.eval().requires_grad_(False)
        self._place = next(self.original.parameters()).device
        # torch.device("cuda") becomes the current one, with its number.
        self.device = torch.empty(0, device=self._place if device is None else device).device
        self.dtype = compute_dtype(self.original)
        self._model: Any = model
        self._about: Callable[[], Mapping[str, Any]] = getattr(model, "about_network", dict)
        self.config = config
        self.schedule = NoiseSchedule.whole(
            model.scheduler_config if isinstance(model, PipelineFolder) else model.scheduler
        )
        self._predict = model_predictor(model, self.schedule)
        if config.precision == "autocast":
            self._predict = with_autocast(self._predict, self.device)

    def identity(self) -> dict[str, str]:
        """Digests of what a run depends on besides its configuration, by name."""
        given = {"noise schedule": self.schedule.identity(), **self._about()}
        digests = {name: digest_of(value) for name, value in given.items()}
        return {"model": fingerprint(self.original), **digests}

    @abstractmethod
    def batches(self, random: IterationRandom) -> list[B]:
        """What an iteration learns from, a batch of each term."""

    @abstractmethod
    def losses_by_pass(
        self, network: nn.Module, batches: Sequence[B]
    ) -> Iterator[dict[Term, Tensor]]:
        """The losses, (N,) of each term, of one forward pass of `network` after the other."""

    def weight(self, term: Term) -> float:
        """What a pass's mean loss is multiplied with: the term's lambda."""
        return self.config.lambda_remain if term == "remain" else self.config.lambda_forget

    @abstractmethod
    def saliency(
        self, network: nn.Module, random: IterationRandom
    ) -> tuple[int, Iterator[LossFn], Iterator[LossFn]]:
        """How many scalars are differentiated for the mask, and they; also those of what is kept.

        One gradient each; contrasts alone need the latter.
        """

    def find_mask(self, network: nn.Module, *, progress: bool = False) -> SaliencyMask:
        """The mask that `config.mask` and `config.saliency` describe.

        No weight changes; the network is put in eval mode.

        Args:
            network: On `device`. The mask covers its parameters that require a gradient.
            progress: Show a progress bar.

        Raises:
            PeckerError: A loss or a score is not finite.
        """

        def scores() -> dict[str, Tensor]:
            network.eval()
            random = IterationRandom(self.config.seed, 0, self.device, SALIENCY)
            count, forget, remain = self.saliency(network, random)
            return saliency_scores(
                network,
                each(forget, "saliency" if progress else None, count),
                reduction=self.reduction,
                remain_losses=remain if self.reduction in CONTRASTS else None,
                clip_grad_norm=self.clip_saliency,
            )

        return choose_mask(self.config.mask, network, self.config.seed, scores)

    def around(self, original: nn.Module, values: Mapping[str, Any]) -> MethodObjective[B]:
        """The same of a copy of the network, with other settings under these dotted keys.

        Raises:
            PeckerError: settings that do not go together.
        """
        other = copy.copy(self)
        other.original = original.eval().requires_grad_(False)
        other.config = self.config.changed(values)
        if self.frozen is not None:
            other.frozen = other.look_up()
        return other

    def look_up(self) -> nn.Module:
        """The original on `device` in `dtype`: itself if that is what it is, else a copy."""
        first = next(self.original.parameters())
        if (self.device, self.dtype) == (self._place, first.dtype):
            return self.original
        return nn.Module.to(copy.deepcopy(self.original), self.device, self.dtype)
