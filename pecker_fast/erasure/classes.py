"""Erasing a class from a model folder: by distillation, or by a method on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distill.conditions import ClassConditions
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.erasure.run import Erased, Site, Task, Trainer
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
from pecker_fast.methods.trainer import BaselineTrainer, method_objective
from pecker_fast.models import ModelFolder
from pecker_fast.runs.directory import CURVE_NAME
from pecker_fast.runs.finding import MODEL_NAME, PSEUDO_SCORE_NAME

__all__ = ["Baseline", "Distillation"]

T = TypeVar("T", bound=Trainer)


class _ClassTask(Task[T, ModelFolder]):
    """What both ways share: a model folder, its judge, the curve, the report.

    Attributes:
        model: the original.
        pairs: the classes to forget, and the class in the place of each, or None; by index.
        images: the real images that it is trained on, in words, or None.
    """

    def __init__(
        self,
        site: Site,
        model: ModelFolder,
        judge: Judge | None,
        sampler: Sampler,
        pairs: Pairs,
    ) -> None:
        """As the attributes say; without a judge there is no evaluation and no report."""
        self.site, self.model, self.original = site, model, model.network
        self.pairs = pairs
        self.images: str | None = None
        self._judge, self._sampler = judge, sampler
        self._look = sampler
        self._curve: Curve | None = None

    def watch(self, trainer: T) -> Callable[[], bool]:
        """Measures forgetting and keeping where a point of the curve is due."""
        if self._judge is None or len(self.pairs) != 1:
            return lambda: False  # a curve is of one class
        until = self.config.until
        probe = ClassProbe(self._judge, self.model, self.pairs[0][0], self._look, until)
        curve = self._curve = Curve(
            self.site.out / CURVE_NAME,
            lambda: probe.draw(self.finish(trainer), self.site.ranks),
            probe.measure,
            (trainer.iteration, self.config.iterations),
            self.site.ranks,
            until,
            partial(self.site.tell, prefix="curve/"),
        )
        return lambda: curve.visit(trainer.iteration, trainer.stopwatch.seconds)

    def save(
        self, trainer: T, model: ModelFolder, frozen: FrozenCheck, figures: Mapping[str, Any]
    ) -> ModelFolder:
        """Write the model folder."""
        model = replace(model, figures={**model.figures, **figures})
        self.site.ranks.first(lambda: model.save(self.site.out / MODEL_NAME))
        return model

    def judge(self, erasure: Erased[ModelFolder]) -> Report | None:
        """The figures of both models, pictures, and the page about them."""
        site, model, judge, curve = self.site, self.model, self._judge, self._curve
        if judge is None or not self.pairs:
            return None
        clock, ranks = site.clock, site.ranks
        model.network.to(site.device)  # only now: the run has a copy in its own precision
        if curve is None:
            with clock.stage("evaluate"):
                report = report_on_several(erasure, model, self.pairs, judge, self._sampler, ranks)
            if report is not None:
                report.write(site.out, ())
            return report
        ((forget, override),) = self.pairs
        with clock.stage("evaluate"):
            teacher = judge.of_teacher(model, self.config.seed, ranks)
            after = judge.of_erased(erasure.model, forget, override, self._sampler, ranks)
        if teacher is None or after is None:
            return None  # the first process writes the report
        with clock.stage("pictures"):
            pictures = draw_pictures(
                model, erasure.model, erasure.mask, teacher, after, curve.points, self._sampler,
                site.out,
            )  # fmt: skip
        report = class_report(
            replace(erasure.facts, wall_s=clock.total()),
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

    def _check_until(self) -> None:
        if self.config.until is not None and self._judge is None:
            raise PeckerError(
                "erase: until looks at the images as the run goes; give --classifier, or set until "
                "to null"
            )

    def _named(self, figures: dict[str, Any]) -> dict[str, Any]:
        """With the name of the class that was forgotten, or the names of several."""
        names = [self.model.class_names[index] for index, _ in self.pairs]
        if len(names) == 1:
            figures["forget"] = names[0]
        elif names:
            figures["forgotten"] = names
        return figures


class Distillation(_ClassTask[PeckerTrainer]):
    """A model is distilled into a one-step generator that forgets a class."""

    def __init__(
        self,
        site: Site,
        model: ModelFolder,
        config: PeckerConfig,
        judge: Judge | None = None,
        starts: Mapping[str, StartNetwork] | None = None,
    ) -> None:
        """Look at the classes and time constants, before anything is written.

        Args:
            site: where the run takes place.
            model: the teacher.
            config: the run.
            judge: None for no evaluation and no report.
            starts: by role, networks that start elsewhere than at the teacher.

        Raises:
            PeckerError: a class or a time constant that the model does not have, or a judge where
                nothing is forgotten.
        """
        self._objective = Objective.from_model(model, config, site.device)
        classes = self._objective.conditions
        assert isinstance(classes, ClassConditions)  # a model folder's are
        if not classes.pairs and judge is not None:
            raise PeckerError(
                "erase: nothing is forgotten (forget is null), so there is no report to write; "
                "leave out --classifier and use `pecker-fast evaluate`"
            )
        super().__init__(site, model, judge, Sampler(1, config.seed), classes.pairs)
        self.config = config
        self._check_until()
        given = starts or {}
        self.starts = {role: start.facts for role, start in given.items()}
        self._networks = {role: start.network for role, start in given.items()}

    def finish(self, trainer: PeckerTrainer, *, over: bool = False) -> ModelFolder:
        """A one-step generator; it remembers where its one step starts."""
        figures = {
            "t_init": self._objective.schedule.t_init,
            "iterations": trainer.iteration,
            "mask_digest": trainer.mask.digest,
        }
        erased = self.model.with_network(trainer.ema_generator(over=over), "generator")
        return replace(erased, figures=self._named(figures))

    def save(
        self,
        trainer: PeckerTrainer,
        model: ModelFolder,
        frozen: FrozenCheck,
        figures: Mapping[str, Any],
    ) -> ModelFolder:
        """Write the model folder; of a first stage the pseudo-score network as well."""
        model = super().save(trainer, model, frozen, figures)
        if not self.pairs:
            network = self.model.with_network(trainer.pseudo_score, "teacher")
            about = {**model.figures, "method": "pseudo_score"}
            folder = replace(network, figures=about)
            path = self.site.out / PSEUDO_SCORE_NAME
            self.site.ranks.first(lambda: folder.save(path))
        return model


class Baseline(_ClassTask[BaselineTrainer]):
    """A model is trained so that it forgets a class; it keeps its many steps."""

    def __init__(
        self,
        site: Site,
        model: ModelFolder,
        config: BaselineConfig,
        images: ImageSet | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Look at images and classes, before anything is written.

        Args:
            site: where the run takes place.
            model: the model that must forget.
            config: the run.
            images: what the model was trained on, of all classes; None for a method that needs
                none.
            judge: None for no evaluation and no report.

        Raises:
            PeckerError: images that do not fit the model, a class that it does not have, or a
                judge that draws in one step.
        """
        steps = 50
        if judge is not None:
            steps = judge.teacher_steps if judge.teacher is None else judge.teacher.steps
        if steps == 1:
            raise PeckerError(
                f"method {config.method} gives a many-step model: --teacher-steps must be at "
                "least 2"
            )
        self._objective = method_objective(model, config, images, site.device)
        super().__init__(site, model, judge, Sampler(steps, config.seed), self._objective.pairs)
        self.config = config
        if config.until is not None:
            self._look = Sampler(config.until.steps, config.seed)
        self._check_until()
        self.images = None if images is None else images.source

    def finish(self, trainer: BaselineTrainer, *, over: bool = False) -> ModelFolder:
        """A many-step model, as the original is."""
        figures = {
            "method": trainer.config.method,
            "iterations": trainer.iteration,
            "mask_digest": trainer.mask.digest,
            **({} if self.images is None else {"images": self.images}),
        }
        erased = self.model.with_network(trainer.erased_network(over=over), "teacher")
        return replace(erased, figures=self._named(figures))
