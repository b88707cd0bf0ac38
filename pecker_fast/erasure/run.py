"""One erasure, of whatever from whatever: mask, training, result, proof, judgement.

Everything goes into one run directory; the same call on the same directory resumes. What kinds of
erasure differ in is a `Task`.
"""

from __future__ import annotations

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import nn

from pecker_fast import backends
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.distributed import Ranks
from pecker_fast.erasure.card import push, scalars, write_card
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.comparison_reading import Begun
from pecker_fast.evaluate.report import Report, RunFacts
from pecker_fast.files import read_json, write_text
from pecker_fast.machine import machine_facts, versions
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FROZEN_NAME, FrozenCheck
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.objective import MethodObjective
from pecker_fast.methods.trainer import BaselineTrainer
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.models.weights import as_dtype
from pecker_fast.progress import note
from pecker_fast.runs.digest import digest_of
from pecker_fast.runs.directory import (
    ATTACK_NAME,
    PATCH_NAME,
    REPORT_NAMES,
    START_NAME,
    Clock,
    RunDirectory,
    run_directory,
)
from pecker_fast.runs.dry_run import naming_settings
from pecker_fast.runs.finding import MODEL_NAME, PIPELINE_NAME
from pecker_fast.runs.interrupts import saving_at_interrupt
from pecker_fast.runs.masked import MaskedRun
from pecker_fast.runs.reading import checked

__all__ = ["Erased", "Site", "Task", "Tracker", "Trainer", "carry_out"]


Trainer: TypeAlias = MaskedRun[Any]
T = TypeVar("T", bound=Trainer)
M = TypeVar("M", ModelFolder, PipelineFolder)


class Tracker(Protocol):
    """What keeps values of a run: a run of wandb, a tracker of accelerate, or one of your own."""

    def log(self, values: dict[str, Any], /, *, step: int) -> Any:
        """Keep them.

        Args:
            values: numbers by name: `loss/...`, `curve/...` (judged points), `report/...`; and
                the text `notes` once, at the start.
            step: iterations that are done.
        """


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a run takes place, and what it is given.

    Attributes:
        out: where everything goes; the run that it holds is taken up.
        device: where to work.
        ranks: the processes that share the run, each of which does all of it.
        mask: instead of the one that the configuration describes.
        force: delete the run that `out` holds instead.
        clock: runs since the start of the command.
        base_model: id on the hub of what is erased from. None: it is not from there.
        trackers: what is told losses, points of the curve and figures as the run goes.
    """

    out: Path
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    mask: SaliencyMask | None = None
    force: bool = False
    clock: Clock = field(default_factory=Clock)
    base_model: str | None = None
    trackers: Sequence[Tracker] = ()

    def tell(self, values: Mapping[str, Any], iteration: int, prefix: str = "") -> None:
        """Hand the trackers what is known, on the first process."""
        known = {f"{prefix}{name}": value for name, value in values.items() if value is not None}
        if self.ranks.is_first and known:
            for tracker in self.trackers:
                tracker.log(known, step=iteration)


@dataclass(frozen=True, kw_only=True)
class Erased(Generic[M]):
    """What a run has made.

    Attributes:
        out: the run directory, with all of it.
        model: the erased model or pipeline, as it lies in `out`.
        mask: the entries that the run might change, at its end.
        frozen: the bit-by-bit comparison of the frozen entries before and after.
        facts: how the run went: iterations, seconds, backend, machine, configuration.
        report: the figures, as in report.html; None where nothing judged or showed the images,
            and on all processes but the first.
    """

    out: Path
    model: M
    mask: SaliencyMask
    frozen: FrozenCheck
    facts: RunFacts
    report: Report | None = None

    @property
    def kind(self) -> str:
        """What was erased from: model or pipeline, which is also its folder's name in `out`."""
        return PIPELINE_NAME if isinstance(self.model, PipelineFolder) else MODEL_NAME

    @property
    def folder(self) -> Path:
        """The folder of the erased model or pipeline."""
        return self.out / self.kind

    @property
    def patch(self) -> Path | None:
        """The file that turns the original's network into the erased one; None without one."""
        file = self.out / PATCH_NAME
        return file if file.is_file() else None

    @property
    def pipeline(self) -> Any:
        """What was erased as a pipeline of diffusers, loaded anew.

        Raises:
            PeckerError: a class model that draws in many steps; diffusers has no pipeline that asks
                such a model for a class.
        """
        from diffusers import DiffusionPipeline

        from pecker_fast.models.one_step_pipeline import OneStepPipeline

        if not (self.folder / "model_index.json").is_file():
            raise PeckerError(
                f"{self.folder}: draws a class in many steps, for which diffusers has no pipeline; "
                "use `pecker-fast sample`, or pecker_fast.evaluate.sampling.Sampler"
            )
        prompts = isinstance(self.model, PipelineFolder)
        kind = DiffusionPipeline if prompts else OneStepPipeline
        return kind.from_pretrained(self.folder, **as_dtype(self.model.network.dtype))

    def attack(self, classifier: str | os.PathLike[str] | None = None, **options: Any) -> Any:
        """Ask for what was erased in every other way, and teach it again.

        Args:
            classifier: folder of the judge.
            options: as `pecker_fast.erasure.attack.attack` takes them, such as `original=`.

        Raises:
            PeckerError: as `attack`.
        """
        from pecker_fast.erasure.attack import attack

        options["classifier"] = classifier
        for name in ("classifier", "prompts", "clip", "original", "retrained"):
            if options.get(name) is not None:
                options[name] = Path(options[name])
        return attack(self.out, **options)

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None
    ) -> str:
        """Upload the erased model with its card, and the patch; returns the address.

        Args:
            repository: `owner/name`; made where there is none.
            private: one that is made, is.
            token: None: as huggingface_hub finds it, from `hf auth login` or HF_TOKEN.

        Raises:
            FrozenChangedError: a frozen entry has changed.
            PeckerError: the hub refuses.
        """
        self.frozen.require_unchanged(self.out)
        return push(self.folder, self.out / PATCH_NAME, repository, private=private, token=token)


class Task(ABC, Generic[T, M]):
    """What is erased from what, and how: what kinds of erasure differ in.

    Attributes:
        site: where.
        config: the run.
        original: the network before it.
        starts: by role, where the networks come from that start elsewhere than at the original.
    """

    site: Site
    config: PeckerConfig | BaselineConfig
    original: nn.Module
    starts: Mapping[str, Mapping[str, Any]] = {}
    _objective: Any
    _networks: Mapping[str, nn.Module] = {}

    @property
    def objective(self) -> Objective | MethodObjective[Any]:
        """What is learnt."""
        found: Objective | MethodObjective[Any] = self._objective
        return found

    @property
    def result_bytes(self) -> int:
        """About what the erased model takes on the disk."""
        return sum(param.nbytes for param in self.original.parameters())

    def tried(
        self, values: Mapping[str, Any], copied: Callable[[nn.Module], nn.Module]
    ) -> Task[T, M]:
        """The same with other settings under these dotted keys, on copies of its networks.

        Raises:
            PeckerError: settings that do not go together.
        """
        other = copy.copy(self)
        other._objective = self._objective.around(copied(self.original), values)
        other.config = other._objective.config
        other._networks = {role: copied(network) for role, network in self._networks.items()}
        return other

    def start(self, directory: RunDirectory | None) -> T:
        """A trainer, which takes up what the run directory holds.

        The directory is None on all processes but the first.
        """
        objective, site = self.objective, self.site
        shared: Any = {
            "mask": site.mask, "run_directory": directory, "progress": True, "ranks": site.ranks
        }  # fmt: skip
        if isinstance(objective, MethodObjective):
            return cast(T, BaselineTrainer(objective, **shared))
        return cast(T, PeckerTrainer(objective, **shared, **dict[str, Any](self._networks)))

    @abstractmethod
    def finish(self, trainer: T, *, over: bool = False) -> M:
        """The erased model as it is now; once the run is `over`, in the memory of its network."""

    @abstractmethod
    def save(self, trainer: T, model: M, frozen: FrozenCheck, figures: Mapping[str, Any]) -> M:
        """The model with `figures` in it, which the first process writes."""

    def notes(self, trainer: T) -> Sequence[str]:
        """What is said as the run starts."""
        return trainer.notes

    def watch(self, trainer: T) -> Callable[[], bool]:
        """What looks at the model before the first and after each iteration, on all processes.

        It returns whether the run is over before its end.
        """
        return lambda: False

    def judge(self, erasure: Erased[M]) -> Report | None:
        """Look at what was made and write the report; None without one."""
        return None


def carry_out(task: Task[T, M]) -> Erased[M]:
    """Find the mask, train, save, compare the frozen entries, judge; on every process of a run.

    Raises:
        PeckerError: an unknown backend, a mask of another model, a directory that holds another
            run or other things, a loss that is not finite.
    """
    site, config, clock, ranks = task.site, task.config, task.site.clock, task.site.ranks
    backend = backends.name_of(backends.select(config.optimizer.backend, site.device))
    if site.mask is not None:
        site.mask.check(dict(task.original.named_parameters()))
    with run_directory(site.out, site.force, ranks) as directory, naming_settings(config):
        is_new = directory is not None and not directory.iterations()
        with clock.stage("mask"):
            trainer = task.start(directory)
        searched = site.mask is None and config.mask.kind == "saliency"
        begun: dict[str, Any] = {"start": dict(task.starts)}
        if searched:
            begun["mask_seconds"] = round(clock.stages["mask"], 2)
        begun["digest"] = digest_of(begun)
        # A later start neither finds a mask nor times that.
        ranks.first(lambda: _write_json(site.out / START_NAME, begun) if is_new else None)
        notes = "; ".join(task.notes(trainer))
        note(notes)
        site.tell({"notes": notes}, trainer.iteration)
        resumed_at = trainer.iteration
        if resumed_at:
            note(f"resuming at iteration {resumed_at} of {config.iterations}")
        # Files of the run that cannot be read are refused before any of it is removed.
        mask_seconds, look = _mask_seconds(site.out), task.watch(trainer)
        if ranks.is_first:
            for name in (FROZEN_NAME, PATCH_NAME, ATTACK_NAME, *REPORT_NAMES):
                # Of an earlier state: must not stand beside a new one.
                (site.out / name).unlink(missing_ok=True)
        with clock.stage("erase"):
            over = look()
            steps = iter(()) if over else trainer.run()
            for done in saving_at_interrupt(steps, lambda: trainer.iteration, trainer.save, ranks):
                site.tell(done.losses or {}, done.iteration, "loss/")
                if over := look():
                    trainer.save()
                    break
            if over:
                note(
                    f"over at iteration {trainer.iteration} of {config.iterations}, after "
                    f"{trainer.stopwatch.seconds:.0f} s of training: gone, and the rest kept"
                )
        with clock.stage("save"):
            machine, software = machine_facts(site.device), versions()
            training = {
                "seconds": round(trainer.stopwatch.seconds, 2),
                "processes": ranks.size,
                "machine": machine,
                "versions": software,
            }
            if mask_seconds is not None:
                training["mask_seconds"] = mask_seconds
            figures: dict[str, Any] = {"training": training}
            if task.starts:
                figures["start"] = dict(task.starts)
            model = task.finish(trainer, over=True)
            frozen = trainer.verify_frozen(model.network)
            figures["frozen"] = frozen.to_dict()
            ranks.first(lambda: _write_json(site.out / FROZEN_NAME, frozen.to_dict()))
            model = task.save(trainer, model, frozen, figures)
        facts = RunFacts(
            frozen=frozen,
            mask=config.mask.kind if site.mask is None else "given",
            density=trainer.mask.density,
            iterations=trainer.iteration,
            seed=config.seed,
            backend=backend,
            wall_s=clock.total(),
            stage_s=clock.stages,
            machine=machine,
            versions=software,
            config=config.flat(),
            resumed_at=resumed_at,
            training_s=trainer.stopwatch.seconds,
            processes=ranks.size,
        )
        erasure = Erased(out=site.out, model=model, mask=trainer.mask, frozen=frozen, facts=facts)
        erasure = replace(erasure, report=task.judge(erasure))
        if erasure.report is not None:
            site.tell(scalars(erasure.report.figures), trainer.iteration, "report/")
        ranks.first(lambda: write_card(erasure, site.base_model))
        return erasure


def _write_json(file: Path, facts: Mapping[str, Any]) -> None:
    write_text(file, json.dumps(facts, indent=2) + "\n")


def _mask_seconds(out: Path) -> float | None:
    """What finding the run's mask took, networks and optimizers made around it included.

    None where it was not searched for: given, drawn at random, full, or nobody timed it.
    """
    file = out / START_NAME
    if not os.path.lexists(file):
        return None
    content = read_json(file)
    begun = checked(Begun, content, file)
    if content.pop("digest", None) != digest_of(content):
        raise PeckerError(f"{file}: is damaged, its content does not match its digest; remove it")
    return begun.mask_seconds
