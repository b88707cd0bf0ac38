"""What `erase --pipeline` shows: previews while it runs, pictures and a report at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distill.text_config import ConceptSection
from pecker_fast.distributed import Ranks
from pecker_fast.evaluate.clip_score import ClipScorer, measure_clip_score
from pecker_fast.evaluate.concept import ConceptFigures
from pecker_fast.evaluate.concept_pictures import ProgressStrip, PromptGroup, plot_before_after
from pecker_fast.evaluate.concept_report import ConceptReport, Picture, Sampling, Table
from pecker_fast.evaluate.concept_sections import clip_section, detection_section
from pecker_fast.evaluate.nudity import NudeNetDetector, measure_nudity
from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
from pecker_fast.machine import machine_facts, versions
from pecker_fast.models.pipeline import PipelineFolder

__all__ = ["Judges", "Previews", "load_judges", "prompt_groups", "write_report"]

T = TypeVar("T")

_SHOWN = {"forget": 3, "override": 2, "remain": 3}  # prompts of each kind
_COLUMNS = 4  # images of each prompt in the before/after picture


@dataclass(frozen=True)
class Judges:
    """What looks at the images besides the reader; None where it was not given.

    Attributes:
        nudity: counts detections.
        clip: compares images with their prompts.
    """

    nudity: NudeNetDetector | None = None
    clip: ClipScorer | None = None


def load_judges(nudity: Path | None, clip: Path | None, device: torch.device) -> Judges:
    """The judges whose files were named.

    Raises:
        PeckerError: a file that is something else, or a package that is missing.
    """
    return Judges(
        None if nudity is None else NudeNetDetector(nudity),
        None if clip is None else ClipScorer(clip, device),
    )


def prompt_groups(conditions: TextConditions, neighbours: Sequence[str]) -> list[PromptGroup]:
    """The prompts that are shown: what is forgotten, its override, neighbours, the rest."""
    pairs = [pair for concept in conditions.concepts for pair in _spread(concept, 3)]
    groups = [
        PromptGroup("to forget", tuple(p.forget for p in pairs[: _SHOWN["forget"]]), True),
        PromptGroup("in its place", tuple(p.override or " " for p in pairs[: _SHOWN["override"]])),
        PromptGroup("neighbours", tuple(neighbours)),
        PromptGroup("to keep", tuple(_spread(conditions.remain, _SHOWN["remain"]))),
    ]
    return [group for group in groups if group.prompts]


class Previews:
    """Draws the same prompts from the same noise, for `erase_concept`."""

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
        self.sampling = Sampling(
            steps, _guidance(config), config.diffusion.t_init, config.seed, _negative(config)
        )
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
        latents = self._sampler.many_steps(
            unet,
            texts,
            how.seed,
            how.steps,
            how.guidance,
            how.negative,
            progress="original model",
            ranks=ranks,
        )
        self._pipeline.unet.to("cpu")
        return self._sampler.images(latents, ranks=ranks)

    def erased(self, generator: nn.Module, columns: int, ranks: Ranks) -> Tensor:
        """Images of a generator from the same noise."""
        how, training = self.sampling, generator.training
        latents = self._sampler.one_step(
            generator.eval(), self._texts(columns), how.seed, how.t_init, ranks=ranks
        )
        generator.train(training)
        return self._sampler.images(latents, ranks=ranks)

    def _texts(self, columns: int) -> list[str]:
        return [prompt for prompt in self.prompts for _ in range(columns)]


def write_report(
    erased: Any,
    pipeline: PipelineFolder,
    recipe: str,
    previews: Previews,
    out: Path,
    device: torch.device,
    judges: Judges,
    figures: ConceptFigures | None = None,
) -> ConceptReport:
    """Plot before and after, let the judges look, write report.html and report.json.

    Args:
        erased: what the run made with these previews, on the first process.
        pipeline: the original.
        recipe: its name.
        previews: how the images were drawn.
        out: the run directory.
        device: where they were drawn.
        judges: what else looks at the images.
        figures: a classifier's.
    """
    assert erased.images is not None  # this is the first process
    before, after = erased.images
    picture = out / "before_after.png"
    plot_before_after(picture, previews.groups, before, after)
    pictures = [
        Picture(
            picture,
            "Before and after",
            "Left the original model, right the erased one, from the same noise. Marked are the "
            "prompts that name what was to be forgotten.",
        )
    ]
    if previews.strip.iterations:
        pictures.append(
            Picture(
                previews.strip.path,
                "While it ran",
                "One-step images of the same prompts, from the same noise, as the run went on.",
                wide=True,
            )
        )
    config = erased.trainer.config
    report = ConceptReport(
        frozen=erased.frozen,
        mask_kind=config.mask.kind,
        density=erased.trainer.mask.density,
        iterations=erased.trainer.iteration,
        seed=config.seed,
        backend=erased.backend,
        wall_s=erased.wall_s,
        stage_s=erased.stage_s,
        machine=machine_facts(device),
        versions=versions(),
        config=config.flat(),
        resumed_at=erased.resumed_at,
        concept=_words([_first(section.concept) for section in _concepts(config)]),
        override=_words([section.override for section in _concepts(config)]),
        model=str(pipeline.path),
        recipe=recipe,
        mask_digest=erased.trainer.mask.digest,
        patch_bytes=erased.patch_bytes,
        unet_bytes=erased.unet_bytes,
        sampling=previews.sampling,
        figures=figures,
        sections=_judged(before, after, previews, judges),
    )
    report.write(out, pictures)
    return report


def _judged(before: Tensor, after: Tensor, previews: Previews, judges: Judges) -> list[Table]:
    sections = []
    if judges.nudity is not None:
        seen, left = (measure_nudity(judges.nudity, images) for images in (before, after))
        sections.append(detection_section(seen, left))
    if judges.clip is not None:
        texts = [prompt for prompt in previews.prompts for _ in range(_COLUMNS)]
        old, new = (measure_clip_score(judges.clip, images, texts) for images in (before, after))
        sections.append(clip_section(old, new))
    return sections


def _concepts(config: PeckerConfig) -> Sequence[ConceptSection]:
    return () if config.text is None else config.text.concepts


def _guidance(config: PeckerConfig) -> float:
    return 1.0 if config.text is None else config.text.guidance.kappa4


def _negative(config: PeckerConfig) -> str:
    return "" if config.text is None else config.text.negative.kappa4


def _first(words: Sequence[str] | str) -> str:
    return words if isinstance(words, str) else words[0]


def _words(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, names)))


def _spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items from the whole list, evenly."""
    step = max(len(items) // count, 1)
    return list(items[::step][:count])
