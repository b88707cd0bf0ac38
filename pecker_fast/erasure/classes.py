"""Erasing classes from a model folder: by distillation, or by a method that keeps the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.erasure.erased import Erased
from pecker_fast.erasure.run import Site, Task, require_judge
from pecker_fast.erasure.several import Pairs, report_on_several
from pecker_fast.erasure.starts import StartNetwork
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.class_pictures import draw_pictures
from pecker_fast.evaluate.curve import ClassProbe, Curve
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.report import Report, class_report
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.masks.verify import FrozenCheck
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.trainer import method_objective
from pecker_fast.models import ModelFolder
from pecker_fast.runs.finding import MODEL_NAME, PSEUDO_SCORE_NAME

__all__ = ["ClassTask"]


class ClassTask(Task):
    """A model is distilled into a one-step generator that forgets, or forgets with its many steps.

    Attributes:
        pairs: the classes to forget, and the class in the place of each, or None; by index.
    """

    def __init__(
        self,
        site: Site,
        model: ModelFolder,
        config: PeckerConfig | BaselineConfig,
        judge: Judge | None = None,
        starts: Mapping[str, StartNetwork] | None = None,
        images: ImageSet | None = None,
    ) -> None:
        """Look at the classes and time constants, before anything is written.

        Args:
            site: where the run takes place.
            model: the teacher, or the model that must forget.
            config: the run.
            judge: None for no evaluation and no report.
            starts: by role, networks of a distillation that start elsewhere than at the teacher.
            images: real ones of all classes, for a method that is trained on them.

        Raises:
            PeckerError: images that do not fit the model, a class or a time constant that it does
                not have, or a judge that draws in one step or where nothing is forgotten.
        """
        objective: Any
        require_judge(config, judge)
        if isinstance(config, BaselineConfig):
            steps = 50
            if judge is not None:
                steps = judge.teacher_steps if judge.teacher is None else judge.teacher.steps
            objective = method_objective(model, config, images, site.device)
            self.pairs: Pairs = objective.pairs
        else:
            steps, objective = 1, Objective.from_model(model, config, site.device)
            self.pairs = objective.conditions.pairs
        if not self.pairs and judge is not None:
            raise PeckerError(
                "erase: nothing is forgotten (forget is null), so there is no report to write; "
                "leave out --classifier and use `pecker-fast evaluate`"
            )
        super().__init__(site, model, config, objective, starts)
        self.images = None if images is None else images.source
        self._judge, self._sampler = judge, Sampler(steps, config.seed)
        self._curve: Curve | None = None

    def watch(self, trainer: Any) -> Callable[[], bool]:
        """Measures forgetting and keeping where a point of the curve is due."""
        if self._judge is None or len(self.pairs) != 1:
            return lambda: False  # a curve is of one class
        until, look = self.config.until, self._sampler
        if isinstance(self.config, BaselineConfig) and self.config.until is not None:
            look = replace(look, steps=self.config.until.steps)
        probe = ClassProbe(self._judge, self.model, self.pairs[0][0], look, until)
        curve = self._curve = self.curve(
            trainer, lambda: probe.draw(self.finish(trainer), self.site.ranks), probe.measure
        )
        return lambda: curve.visit(trainer.iteration, trainer.stopwatch.seconds)

    def finish(self, trainer: Any, *, over: bool = False) -> ModelFolder:
        """The model folder; a one-step generator remembers where its one step starts."""
        names = [self.model.class_names[index] for index, _ in self.pairs]
        figures = self.card(trainer)
        if self.images is not None:
            figures["images"] = self.images
        if names:
            figures |= {"forget": names[0]} if len(names) == 1 else {"forgotten": names}
        kind = "teacher" if self.keeps_steps else "generator"
        erased: ModelFolder = self.model.with_network(trainer.erased_network(over=over), kind)
        return replace(erased, figures=figures)

    def save(
        self, trainer: Any, model: ModelFolder, frozen: FrozenCheck, figures: Mapping[str, Any]
    ) -> ModelFolder:
        """Write the model folder; of a first stage the pseudo-score network as well."""
        model = replace(model, figures={**model.figures, **figures})
        self.site.ranks.first(lambda: model.save(self.site.out / MODEL_NAME))
        if not self.pairs and isinstance(trainer, PeckerTrainer):
            network = self.model.with_network(trainer.pseudo_score, "teacher")
            folder = replace(network, figures={**model.figures, "method": "pseudo_score"})
            self.site.ranks.first(lambda: folder.save(self.site.out / PSEUDO_SCORE_NAME))
        return model

    def judge(self, erased: Erased) -> Report | None:
        """The figures of both models, pictures, and the page about them."""
        site, model, judge, curve = self.site, self.model, self._judge, self._curve
        if judge is None or not self.pairs:
            return None
        clock, ranks = site.clock, site.ranks
        model.network.to(site.device)  # only now: the run has a copy in its own precision
        if curve is None:
            with clock.stage("evaluate"):
                report = report_on_several(erased, model, self.pairs, judge, self._sampler, ranks)
            if report is not None:
                report.write(site.out, ())
            return report
        ((forget, override),) = self.pairs
        with clock.stage("evaluate"):
            teacher = judge.of_teacher(model, self.config.seed, ranks)
            after = judge.of_erased(erased.model, forget, override, self._sampler, ranks)
        if teacher is None or after is None:
            return None  # the first process writes the report
        with clock.stage("pictures"):
            pictures = draw_pictures(
                model, erased.model, erased.mask, teacher, after, curve.points, self._sampler,
                site.out,
            )  # fmt: skip
        report = class_report(
            replace(erased.facts, wall_s=clock.total()),
            model.class_names,
            teacher,
            after,
            curve.points,
            teacher_ships=judge.teacher is not None,
            images=self.images,
            real=judge.real_figures,
        )
        report.write(site.out, pictures)
        return report
