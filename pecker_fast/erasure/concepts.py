"""Erasing concepts from a text-to-image pipeline: prompts, training, pipeline, patch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.erasure.erased import Erased
from pecker_fast.erasure.prompt_judges import PromptJudge
from pecker_fast.erasure.run import Site, Task, require_judge
from pecker_fast.erasure.starts import StartNetwork
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.concept_report import concept_report
from pecker_fast.evaluate.previews import Previews, prompt_groups
from pecker_fast.evaluate.report import Report
from pecker_fast.files import replacing_folder, write_text
from pecker_fast.masks.verify import FrozenCheck
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.trainer import method_objective
from pecker_fast.models.pipeline import DESCRIPTION, PipelineFolder
from pecker_fast.models.weights import save_network
from pecker_fast.patches.patch import save_patch
from pecker_fast.runs.directory import PATCH_NAME
from pecker_fast.runs.finding import PIPELINE_NAME, PSEUDO_SCORE_NAME

__all__ = ["Concept", "Showing", "patch_sizes"]

_LOOKS = 6  # at the network while it is trained, besides the one at the start
_LOOK_IMAGES = 60  # of the concept, and as many of others, in a look that a judge has
_LOOK_STEPS = 10  # of a many-step network, in a look
_IN_PATCH = ("iterations", "t_init")


@dataclass(frozen=True)
class Showing:
    """How a pipeline's images are shown and judged.

    Attributes:
        recipe: name of the recipe, for the report.
        steps: of a many-step model.
        judge: who recognises what prompts name, which a verdict and `until` need.
    """

    recipe: str
    steps: int = 50
    judge: PromptJudge | None = None


class Concept(Task):
    """A pipeline forgets concepts: distilled into one step, or with its many steps (redirect)."""

    def __init__(
        self,
        site: Site,
        pipeline: PipelineFolder,
        config: PeckerConfig | BaselineConfig,
        showing: Showing | None = None,
        starts: Mapping[str, StartNetwork] | None = None,
    ) -> None:
        """Encode the prompts, before anything is written.

        Args:
            site: where the run takes place.
            pipeline: the teacher.
            config: the run, with a section `text`.
            showing: None for no images and no report.
            starts: by role, networks of a distillation that start elsewhere than at the teacher.
                The patch belongs to what the generator starts from.

        Raises:
            PeckerError: prompts that cannot be used, a time constant that the model does not have,
                `until` without a probe, or a one-step generator that is to keep its steps.
        """
        keeps_steps = isinstance(config, BaselineConfig)
        require_judge(config, None if showing is None else showing.judge)
        for file in sorted(pipeline.path.rglob("*")):
            if file.is_symlink() and not file.exists():
                raise PeckerError(
                    f"pipeline folder {pipeline.path}: {file.relative_to(pipeline.path)} is a link "
                    "to what is not there, so the result could not be written; restore or remove it"
                )
        if keeps_steps and pipeline.description.get("kind") == "generator":
            raise PeckerError(
                f"{pipeline.path}: a one-step generator, which has no steps to keep; give the "
                "pipeline that it was distilled from"
            )
        objective: Any
        with site.clock.stage("prompts"):
            if isinstance(config, BaselineConfig):
                objective = method_objective(pipeline, config, None, site.device)
            else:
                objective = Objective.from_pipeline(pipeline, config, site.device)
        super().__init__(site, pipeline, config, objective, starts)
        self.conditions: TextConditions = objective.conditions
        self._showing = showing
        self._previews: Previews | None = None
        if showing is not None:
            steps, look = (showing.steps, showing.steps if keeps_steps else 1), 1
            if isinstance(config, BaselineConfig):
                look = min(steps[1], _LOOK_STEPS if config.until is None else config.until.steps)
            self._previews = Previews(
                pipeline, config, prompt_groups(self.conditions), site.out, site.device, *steps,
                look_steps=look,
            )  # fmt: skip

    @property
    def told(self) -> list[str]:
        """The prompts that are to be forgotten."""
        return [pair.forget for concept in self.conditions.concepts for pair in concept]

    @property
    def result_bytes(self) -> int:
        """The whole pipeline."""
        return sum(file.stat().st_size for file in self.model.path.rglob("*") if file.is_file())

    def notes(self, trainer: Any) -> Sequence[str]:
        """How many prompts there are, too."""
        pairs = sum(map(len, self.conditions.concepts))
        kept = len(self.conditions.remain)
        prompts = [f"{pairs} prompts to forget, {kept} to keep"]
        if self.model.has_guidance and self.config.text is not None:
            scales = sorted(set(self.config.text.guidance.model_dump().values()))
            said = ", ".join(f"{scale:g}" for scale in scales)
            prompts.append(f"guidance is built into the network; by a second prompt: {said}")
        return [*prompts, *trainer.notes]

    def watch(self, trainer: Any) -> Callable[[], bool]:
        """Shows the network now and then, and measures it where there is a probe."""
        previews, showing, ranks = self._previews, self._showing, self.site.ranks
        if previews is None or showing is None:
            return lambda: False
        total = self.config.length
        shown_at = {round(total * index / _LOOKS) for index in range(_LOOKS + 1)}
        curve = None
        if (judge := showing.judge) is not None:
            until = self.config.until
            captions = judge.probe(self.told, _LOOK_IMAGES if until is None else until.images)
            curve = self.curve(
                trainer,
                lambda: previews.look(
                    trainer.erased_network().to(self.site.device), captions.prompts, ranks
                ),
                lambda images, iteration: judge.point(captions, images),
            )

        def visit() -> bool:
            if trainer.iteration in shown_at:
                previews.show(trainer.network, trainer.iteration, ranks)
            if curve is None:
                return False
            return curve.visit(trainer.iteration, trainer.stopwatch.seconds)

        return visit

    def finish(self, trainer: Any, *, over: bool = False) -> PipelineFolder:
        """The pipeline around the network, in the precision that it had."""
        description = {**self.model.description, **self.card(trainer)}
        if not self.keeps_steps:
            schedule = self.objective.schedule
            description["kind"] = "generator"
            if schedule.flow:
                description["sigma_init"] = float(schedule.noise[schedule.t_init])
        if self.told:
            description["forget"] = sorted(set(self.told))[:50]
        network: Any = trainer.erased_network(over=over).to("cpu")
        path = self.site.out / PIPELINE_NAME
        made: PipelineFolder = replace(
            self.model, path=path, network=network, description=description
        )
        return made

    def save(
        self, trainer: Any, model: PipelineFolder, frozen: FrozenCheck, figures: Mapping[str, Any]
    ) -> PipelineFolder:
        """Write the pipeline, and of a first stage the pseudo-score network, else the patch.

        There is no patch where a frozen entry has changed: it holds none.
        """
        model = replace(model, description={**model.description, **figures})
        about = {name: value for name, value in self.card(trainer).items() if name in _IN_PATCH}
        pseudo_score: Any = None
        if not self.conditions.concepts and isinstance(trainer, PeckerTrainer):
            pseudo_score = trainer.pseudo_score

        def write() -> None:
            self.model.save(model.path, model.network, model.description)
            if pseudo_score is not None:
                with replacing_folder(self.site.out / PSEUDO_SCORE_NAME) as folder:
                    save_network(pseudo_score, folder / model.architecture.denoiser)
                    made = {**model.description, "method": "pseudo_score"}
                    write_text(folder / DESCRIPTION, json.dumps(made, indent=1) + "\n")
            elif not frozen.frozen_changed:
                patch = self.site.out / PATCH_NAME
                save_patch(patch, trainer.start, model.network, trainer.ever_salient, **about)

        self.site.ranks.first(write)
        return model

    def judge(self, erased: Erased) -> Report | None:
        """Pictures before and after, what was given to judge them, and the page about them.

        None for a first stage, which has forgotten nothing.
        """
        showing, previews, site = self._showing, self._previews, self.site
        if showing is None or previews is None or erased.frozen.frozen_changed:
            return None
        if not self.conditions.concepts:
            return None
        network = erased.model.network.to(site.device)
        images = (
            previews.original(previews.texts, site.ranks),
            previews.erased(network, previews.texts, site.ranks),
        )
        if not site.ranks.is_first:
            return None  # the first process writes the report
        outcome = None
        if showing.judge is not None:
            outcome = showing.judge.outcome(previews, self.told, network)
        patch, network = patch_sizes(site.out, self.model.architecture.denoiser)
        text = self.config.text
        concepts = () if text is None else text.concepts
        words = [c if isinstance(c, str) else c[0] for c in (part.concept for part in concepts)]
        report = concept_report(
            erased.facts,
            concept=_listed(words),
            override=_listed([part.override for part in concepts]),
            model=str(self.model.path),
            recipe=showing.recipe,
            mask_digest=erased.mask.digest,
            patch_bytes=patch,
            unet_bytes=network,
            samplers=(previews.before, previews.after),
            outcome=outcome,
        )
        report.write(site.out, previews.pictures(*images))
        return report


def patch_sizes(out: Path, part: str) -> tuple[int, int]:
    """Bytes of the patch in a run directory, and of that part of its pipeline."""
    network = (out / PIPELINE_NAME / part).glob("*.safetensors")
    return (out / PATCH_NAME).stat().st_size, sum(file.stat().st_size for file in network)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, names)))
