"""What an erasure of concepts shows: previews while it runs, pictures and a report at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distributed import Ranks
from pecker_fast.evaluate.concept import ConceptFigures
from pecker_fast.evaluate.concept_report import Measure, Sampling, concept_report
from pecker_fast.evaluate.grid import PromptGroup, plot_before_after
from pecker_fast.evaluate.page import Picture
from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
from pecker_fast.evaluate.progress import ProgressStrip
from pecker_fast.evaluate.report import Report, RunFacts
from pecker_fast.models.pipeline import PipelineFolder

__all__ = ["Previews", "prompt_groups"]

T = TypeVar("T")

_COLUMNS = 4  # images of each prompt in the before/after picture


def prompt_groups(conditions: TextConditions, neighbours: Sequence[str]) -> list[PromptGroup]:
    """The prompts that are shown: what is forgotten, its override, neighbours, the rest."""
    pairs = [pair for concept in conditions.concepts for pair in _spread(concept, 3)]
    groups = [
        PromptGroup("to forget", tuple(pair.forget for pair in pairs[:3]), True),
        PromptGroup("in its place", tuple(pair.override or " " for pair in pairs[:2])),
        PromptGroup("neighbours", tuple(neighbours)),
        PromptGroup("to keep", tuple(_spread(conditions.remain, 3))),
    ]
    return [group for group in groups if group.prompts]


class Previews:
    """Draws the same prompts from the same noise, for `erase_concept`, and reports on them."""

    def __init__(
        self,
        pipeline: PipelineFolder,
        config: PeckerConfig,
        groups: Sequence[PromptGroup],
        out: Path,
        device: torch.device,
        steps: int,
    ) -> None:
        """Prepare; nothing is drawn or loaded yet.

        Args:
            pipeline: the original.
            config: the run.
            groups: the prompts.
            out: where the strip goes.
            device: where to draw.
            steps: of the original model.
        """
        self.groups = groups
        self.prompts = [prompt for group in groups for prompt in group.prompts]
        text = config.text
        guidance = 1.0 if text is None else text.guidance.kappa4
        negative = "" if text is None else text.negative.kappa4
        self.sampling = Sampling(steps, guidance, config.diffusion.t_init, config.seed, negative)
        self._concepts = () if text is None else text.concepts
        self._pipeline, self._out, self._device = pipeline, out, device
        self._sampler = PipelineSampler(pipeline, device)
        self._strip: ProgressStrip | None = None

    @property
    def strip(self) -> ProgressStrip:
        """The strip in the run directory, which only the first process reads and writes."""
        if self._strip is None:
            self._strip = ProgressStrip(self._out, self.groups)
        return self._strip

    def show(self, generator: nn.Module, iteration: int, ranks: Ranks) -> None:
        """Add the generator as it is to the strip, whose first column is the original model.

        Args:
            generator: in training.
            iteration: how many are done.
            ranks: the processes, all of which make this call and draw a share of the images.

        Raises:
            PeckerError: the first process cannot read or write the strip.
        """
        if not ranks.first(lambda: self.strip.has_original):
            original = self.original(1, ranks)
            ranks.first(lambda: self.strip.add_original(original))
        images = self.erased(generator, 1, ranks)

        def add() -> None:
            self.strip.drop_after(iteration - 1)
            self.strip.add(iteration, images)

        ranks.first(add)

    def compare(self, unet: nn.Module, ranks: Ranks) -> tuple[Tensor, Tensor] | None:
        """Images of the original model and of `unet`, several of each prompt, from the same noise.

        Returns:
            (N, 3, H, W) in [0, 1] each, on the first process; None on the others.
        """
        compared = self.original(_COLUMNS, ranks), self.erased(unet, _COLUMNS, ranks)
        return compared if ranks.is_first else None

    def original(self, columns: int, ranks: Ranks) -> Tensor:
        """Images of the original model, `columns` of each prompt, (N, 3, H, W) in [0, 1].

        All of them on the first process, none on the others.
        """
        how, texts = self.sampling, self._texts(columns)
        unet = self._pipeline.unet.to(self._device).eval()
        latents = self._sampler.latents(
            unet, texts, how.seed, how.steps, guidance=how.guidance, negative=how.negative,
            progress="original model", ranks=ranks,
        )  # fmt: skip
        self._pipeline.unet.to("cpu")
        return self._sampler.images(latents, ranks=ranks)

    def erased(self, generator: nn.Module, columns: int, ranks: Ranks) -> Tensor:
        """Images of a generator from the same noise."""
        how, training = self.sampling, generator.training
        latents = self._sampler.latents(
            generator.eval(), self._texts(columns), how.seed, t_init=how.t_init, ranks=ranks
        )
        generator.train(training)
        return self._sampler.images(latents, ranks=ranks)

    def report(
        self,
        run: RunFacts,
        images: tuple[Tensor, Tensor],
        measures: Sequence[Measure] = (),
        figures: ConceptFigures | None = None,
        **facts: Any,
    ) -> Report:
        """Plot before and after, let the judges look, write report.html and report.json.

        Args:
            run: what was done.
            images: those of `compare`, on the first process.
            measures: what looks at the images besides the reader, see `load_measures`.
            figures: a classifier's.
            facts: recipe, mask_digest, patch_bytes and unet_bytes of `concept_report`.
        """
        path = self._out / "before_after.png"
        plot_before_after(path, self.groups, *images)
        pictures = [
            Picture(
                path,
                "Before and after",
                "Left the original model, right the erased one, from the same noise. Marked are "
                "the prompts that name what was to be forgotten.",
                wide=True,
            )
        ]
        if self.strip.iterations:
            pictures.append(
                Picture(
                    self.strip.path,
                    "While it ran",
                    "One-step images of the same prompts, from the same noise, as the run went on.",
                    wide=True,
                )
            )
        texts = self._texts(_COLUMNS)
        words = [c if isinstance(c, str) else c[0] for c in (s.concept for s in self._concepts)]
        report = concept_report(
            run,
            concept=_words(words),
            override=_words([section.override for section in self._concepts]),
            model=str(self._pipeline.path),
            sampling=self.sampling,
            figures=figures,
            sections=[measure(*images, texts) for measure in measures],
            **facts,
        )
        report.write(self._out, pictures)
        return report

    def _texts(self, columns: int) -> list[str]:
        return [prompt for prompt in self.prompts for _ in range(columns)]


def _words(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, names)))


def _spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items from the whole list, evenly."""
    step = max(len(items) // count, 1)
    return list(items[::step][:count])
