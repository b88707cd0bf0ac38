"""Erasing concepts from a text-to-image pipeline: prompts, distillation, pipeline, patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.erasure.run import Erasure, Site, Task
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.concept_report import Measure, concept_report
from pecker_fast.evaluate.previews import Previews, prompt_groups
from pecker_fast.evaluate.recognition import Outcome
from pecker_fast.evaluate.report import Report
from pecker_fast.masks.verify import FrozenCheck
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.patches.patch import save_patch
from pecker_fast.runs.checkpoint import RunDirectory
from pecker_fast.runs.finding import PIPELINE_NAME
from pecker_fast.runs.outputs import PATCH_NAME

__all__ = ["Concept", "Showing", "patch_sizes"]

_LOOKS = 6  # at the generator while it is trained, besides the one at the start


@dataclass(frozen=True)
class Showing:
    """How a pipeline's images are shown and judged.

    Attributes:
        recipe: name of the recipe, for the report.
        neighbours: prompts near to the concept that are shown as well.
        steps: of the original model.
        measures: what looks at the images besides the reader.
        measure: what a classifier sees in images of the original and of the erased network.
    """

    recipe: str
    neighbours: Sequence[str] = ()
    steps: int = 50
    measures: Sequence[Measure] = ()
    measure: Callable[[Previews, TextConditions, nn.Module], Outcome] | None = None


class Concept(Task[PeckerTrainer, PipelineFolder]):
    """A pipeline's network is distilled into a one-step generator that forgets concepts."""

    config: PeckerConfig

    def __init__(
        self,
        site: Site,
        pipeline: PipelineFolder,
        config: PeckerConfig,
        showing: Showing | None = None,
        generator: nn.Module | None = None,
    ) -> None:
        """Encode the prompts, before anything is written.

        Args:
            site: where the run takes place.
            pipeline: the teacher.
            config: the run, with a section `text`.
            showing: None for no images and no report.
            generator: where the one-step generator starts, which the patch then belongs to. None:
                the teacher.

        Raises:
            PeckerError: prompts that cannot be used, or a time constant that the model does not
                have.
        """
        for file in sorted(pipeline.path.rglob("*")):
            if file.is_symlink() and not file.exists():
                raise PeckerError(
                    f"pipeline folder {pipeline.path}: {file.relative_to(pipeline.path)} is a link "
                    "to what is not there, so the result could not be written; restore or remove it"
                )
        self.site, self.pipeline, self.config = site, pipeline, config
        self.original = pipeline.unet
        with site.clock.stage("prompts"):
            self._objective = Objective.from_pipeline(pipeline, config, site.device)
        assert isinstance(self._objective.conditions, TextConditions)  # a pipeline's are
        self.conditions = self._objective.conditions
        self._generator, self._showing = generator, showing
        self._previews: Previews | None = None
        if showing is not None:
            groups = prompt_groups(self.conditions, showing.neighbours)
            self._previews = Previews(
                pipeline, config, groups, site.out, site.device, showing.steps
            )

    def start(self, directory: RunDirectory | None) -> PeckerTrainer:
        """A trainer of score forgetting distillation."""
        return PeckerTrainer(
            self._objective,
            generator=self._generator,
            mask=self.site.mask,
            run_directory=directory,
            progress=True,
            ranks=self.site.ranks,
        )

    def notes(self, trainer: PeckerTrainer) -> Sequence[str]:
        """How many prompts there are, too."""
        pairs = sum(map(len, self.conditions.concepts))
        kept = len(self.conditions.remain)
        return [f"{pairs} prompts to forget, {kept} to keep", *trainer.notes]

    def watch(self, trainer: PeckerTrainer) -> Callable[[], bool]:
        """Shows the generator now and then."""
        previews, total = self._previews, self.config.iterations
        if previews is None:
            return lambda: False
        shown_at = {round(total * index / _LOOKS) for index in range(_LOOKS + 1)}

        def visit() -> bool:
            if trainer.iteration in shown_at:
                previews.show(trainer.generator, trainer.iteration, self.site.ranks)
            return False

        return visit

    def finish(self, trainer: PeckerTrainer, *, over: bool = False) -> PipelineFolder:
        """The pipeline around the generator, in the precision that it had."""
        pairs = [pair.forget for concept in self.conditions.concepts for pair in concept]
        description = {
            **self.pipeline.description,
            "kind": "generator",
            "t_init": trainer.config.diffusion.t_init,
            "forget": sorted(set(pairs))[:50],
            "iterations": trainer.iteration,
            "mask_digest": trainer.mask.digest,
        }
        unet: Any = trainer.ema_generator(over=over).to("cpu")
        path = self.site.out / PIPELINE_NAME
        return replace(self.pipeline, path=path, unet=unet, description=description)

    def save(
        self,
        trainer: PeckerTrainer,
        model: PipelineFolder,
        frozen: FrozenCheck,
        figures: Mapping[str, Any],
    ) -> PipelineFolder:
        """Write the pipeline, and the patch unless a frozen entry has changed: it holds none."""
        model = replace(model, description={**model.description, **figures})
        about = {"iterations": trainer.iteration, "t_init": trainer.config.diffusion.t_init}

        def write() -> None:
            self.pipeline.save_with(model.unet, model.path, model.description)
            if frozen.frozen_changed:
                return
            patch = self.site.out / PATCH_NAME
            save_patch(patch, trainer.start, model.unet, trainer.ever_salient, **about)

        self.site.ranks.first(write)
        return model

    def judge(self, erasure: Erasure[PipelineFolder]) -> Report | None:
        """Pictures before and after, what was given to judge them, and the page about them."""
        showing, previews, site = self._showing, self._previews, self.site
        if showing is None or previews is None or erasure.frozen.frozen_changed:
            return None
        unet = erasure.model.unet.to(site.device)
        images = (
            previews.original(previews.texts, site.ranks),
            previews.erased(unet, previews.texts, site.ranks),
        )
        if not site.ranks.is_first:
            return None  # the first process writes the report
        outcome = None
        if showing.measure is not None:
            outcome = showing.measure(previews, self.conditions, unet)
        patch, network = patch_sizes(site.out)
        erased = self.config.text.concepts if self.config.text is not None else ()
        words = [c if isinstance(c, str) else c[0] for c in (part.concept for part in erased)]
        report = concept_report(
            erasure.facts,
            concept=_listed(words),
            override=_listed([part.override for part in erased]),
            model=str(self.pipeline.path),
            recipe=showing.recipe,
            mask_digest=erasure.mask.digest,
            patch_bytes=patch,
            unet_bytes=network,
            sampling=previews.sampling,
            outcome=outcome,
            sections=[measure(*images, previews.texts) for measure in showing.measures],
        )
        report.write(site.out, previews.pictures(*images))
        return report


def patch_sizes(out: Path) -> tuple[int, int]:
    """Bytes of the patch in a run directory, and of the network in its pipeline."""
    network = (out / PIPELINE_NAME / "unet").glob("*.safetensors")
    return (out / PATCH_NAME).stat().st_size, sum(file.stat().st_size for file in network)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, names)))
