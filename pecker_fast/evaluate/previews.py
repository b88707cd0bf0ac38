"""What an erasure of concepts shows: previews while it runs, pictures at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distill.text_config import TextSection
from pecker_fast.distributed import Ranks
from pecker_fast.evaluate.concept_report import Sampling
from pecker_fast.evaluate.grid import PromptGroup, plot_before_after
from pecker_fast.evaluate.page import Picture
from pecker_fast.evaluate.progress import ProgressStrip
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.directory import PICTURE_NAMES

__all__ = ["Previews", "prompt_groups"]

T = TypeVar("T")

_COLUMNS = 4  # images of each prompt in the before/after picture


class _Config(Protocol):
    """What the configuration of a run says of its images."""

    @property
    def text(self) -> TextSection | None: ...

    @property
    def seed(self) -> int: ...


def prompt_groups(conditions: TextConditions) -> list[PromptGroup]:
    """The prompts that are shown: what is forgotten, its override, the rest."""
    pairs = [pair for concept in conditions.concepts for pair in _spread(concept, 3)]
    groups = [
        PromptGroup("to forget", tuple(pair.forget for pair in pairs[:3]), True),
        PromptGroup("in its place", tuple(pair.override or " " for pair in pairs[:2])),
        PromptGroup("to keep", tuple(_spread(conditions.remain, 3))),
    ]
    return [group for group in groups if group.prompts]


class Previews:
    """Draws the same prompts from the same noise by the original and by the erased model."""

    def __init__(
        self,
        pipeline: PipelineFolder,
        config: _Config,
        groups: Sequence[PromptGroup],
        out: Path,
        device: torch.device,
        steps: int,
        erased_steps: int = 1,
        *,
        look_steps: int = 1,
    ) -> None:
        """Prepare; nothing is drawn or loaded yet.

        The original model takes `steps`, the erased one `erased_steps`, and `look_steps` while it
        is trained.
        """
        self.groups = groups
        self.prompts = [prompt for group in groups for prompt in group.prompts]
        text = config.text
        guidance = 1.0 if text is None else text.guidance.kappa4
        # What keeps its steps is asked without a negative prompt, and shown beside the like.
        negative = "" if text is None or erased_steps > 1 else text.negative.forget.kappa4
        self._pipeline, self._out, self._device = pipeline, out, device
        diffusion = getattr(config, "diffusion", None)  # of a distillation
        start = None if diffusion is None else diffusion.t_init
        start = Sampler(t_init=start).start(pipeline)
        self.sampling = Sampling(steps, guidance, start, config.seed, negative, erased_steps)
        self._look_steps = look_steps
        self._strip: ProgressStrip | None = None

    @property
    def strip(self) -> ProgressStrip:
        """The strip in the run directory, which only the first process reads and writes."""
        if self._strip is None:
            self._strip = ProgressStrip(self._out, self.groups)
        return self._strip

    def show(self, network: nn.Module, iteration: int, ranks: Ranks) -> None:
        """Add the network as it is to the strip, whose first column is the original model.

        All processes make this call and draw a share of the images.

        Raises:
            PeckerError: the first process cannot read or write the strip.
        """
        if not ranks.first(lambda: self.strip.has_original):
            original = self.original(self.prompts, ranks)
            ranks.first(lambda: self.strip.add_original(original))
        images = self.look(network, self.prompts, ranks)
        ranks.first(lambda: self.strip.add(iteration, images))

    def original(self, texts: Sequence[str], ranks: Ranks) -> Tensor:
        """An image of each text by the original model, (N, 3, H, W) in [0, 1].

        All of them on the first process, none on the others.
        """
        how, network = self.sampling, self._pipeline.network.to(self._device).eval()
        sampler = Sampler(
            how.steps, how.seed, how.t_init, guidance=how.guidance, negative=how.negative
        )
        found = self._drawn(sampler, network, texts, ranks, "original model")
        network.to("cpu")
        return found

    def erased(self, network: nn.Module, texts: Sequence[str], ranks: Ranks) -> Tensor:
        """The same by an erased network, from the same noise."""
        steps = self.sampling.erased_steps
        return self._erased(network, texts, steps, ranks, "erased model" if steps > 1 else None)

    def look(self, network: nn.Module, texts: Sequence[str], ranks: Ranks) -> Tensor:
        """The same by a network in training, in fewer steps."""
        return self._erased(network, texts, self._look_steps, ranks)

    def _erased(
        self,
        network: nn.Module,
        texts: Sequence[str],
        steps: int,
        ranks: Ranks,
        progress: str | None = None,
    ) -> Tensor:
        how, training = self.sampling, network.training
        guidance = how.guidance if steps > 1 else None
        sampler = Sampler(steps, how.seed, how.t_init, guidance=guidance)
        found = self._drawn(sampler, network.eval(), texts, ranks, progress)
        network.train(training)
        return found

    def _drawn(
        self,
        sampler: Sampler,
        network: nn.Module,
        texts: Sequence[str],
        ranks: Ranks,
        progress: str | None,
    ) -> Tensor:
        images = sampler.sample(self._pipeline, texts, progress, network=network, ranks=ranks)
        return torch.empty(0, *self._pipeline.image_shape) if images is None else images / 2 + 0.5

    def pictures(self, before: Tensor, after: Tensor) -> list[Picture]:
        """Plot images of `texts`, on the first process; with the strip, if there is one."""
        path = self._out / PICTURE_NAMES[0]
        plot_before_after(path, self.groups, before, after)
        found = [
            Picture(
                path,
                "Before and after",
                "Left the original model, right the erased one, from the same noise. Marked are "
                "the prompts that name what was to be forgotten.",
                wide=True,
            )
        ]
        if self.strip.iterations:
            found.append(
                Picture(
                    self.strip.path,
                    "While it ran",
                    f"Images of the same prompts in {self._look_steps} "
                    f"step{'s'[: self._look_steps > 1]}, from the same noise, as the run went on.",
                    wide=True,
                )
            )
        return found

    @property
    def texts(self) -> list[str]:
        """The prompts of the picture before and after, several times each."""
        return [prompt for prompt in self.prompts for _ in range(_COLUMNS)]


def _spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items, or all, from the whole list.

    Prompts are often products of phrases, of which an even step would meet the same ones again.
    """
    step = max(round(0.382 * len(items)), 1)
    while math.gcd(step, len(items)) > 1:
        step += 1
    return [items[index * step % len(items)] for index in range(min(count, len(items)))]
