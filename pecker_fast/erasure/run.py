"""One erasure: find the mask, train, save, prove, judge.

Everything goes into one run directory; the same call on the same directory resumes. What classes
and concepts differ in is a `Task`.
"""

from __future__ import annotations

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pecker_fast import backends
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.distributed import Ranks
from pecker_fast.erasure.erased import Erased, Tracker, scalars, write_card
from pecker_fast.erasure.starts import StartNetwork
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.comparison_reading import Begun
from pecker_fast.evaluate.curve import Curve
from pecker_fast.evaluate.report import Report, RunFacts
from pecker_fast.files import read_json, write_text
from pecker_fast.machine import machine_facts, versions
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FROZEN_NAME, FrozenCheck
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.objective import MethodObjective
from pecker_fast.methods.trainer import BaselineTrainer
from pecker_fast.progress import note
from pecker_fast.runs.digest import digest_of
from pecker_fast.runs.directory import (
    ATTACK_NAME,
    CURVE_NAME,
    PATCH_NAME,
    REPORT_NAMES,
    START_NAME,
    Clock,
    RunDirectory,
    run_directory,
)
from pecker_fast.runs.dry_run import naming_settings
from pecker_fast.runs.interrupts import saving_at_interrupt
from pecker_fast.runs.reading import checked

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Site", "Task", "carry_out", "require_judge"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a run takes place, and what it is given."""

    out: Path  # where everything goes; the run that it holds is taken up
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)  # each of which does all of it
    mask: SaliencyMask | None = None  # instead of the one that the configuration describes
    force: bool = False  # delete the run that `out` holds instead
    clock: Clock = field(default_factory=Clock)  # runs since the start of the command
    base_model: str | None = None  # id on the hub of what is erased from
    trackers: Sequence[Tracker] = ()

    def tell(self, values: Mapping[str, Any], iteration: int, prefix: str = "") -> None:
        """Hand the trackers what is known, on the first process."""
        known = {f"{prefix}{name}": value for name, value in values.items() if value is not None}
        if self.ranks.is_first and known:
            for tracker in self.trackers:
                tracker.log(known, step=iteration)


class Task(ABC):
    """What is erased from what, and how: what classes and concepts differ in.

    Attributes:
        site: where.
        model: the original.
        config: the run.
        objective: what is learnt.
        starts: by role, where the networks come from that start elsewhere than at the original.
    """

    def __init__(
        self,
        site: Site,
        model: Any,
        config: PeckerConfig | BaselineConfig,
        objective: Objective | MethodObjective[Any],
        starts: Mapping[str, StartNetwork] | None = None,
    ) -> None:
        self.site, self.model, self.config, self.objective = site, model, config, objective
        self.original: nn.Module = model.network
        self.starts = {role: start.facts for role, start in (starts or {}).items()}
        self._networks = {role: start.network for role, start in (starts or {}).items()}

    def curve(
        self, trainer: Any, draw: Callable[[], Any], measure: Callable[[Any, int], Any]
    ) -> Curve:
        """The points at which what is drawn is judged as the run goes."""
        return Curve(
            self.site.out / CURVE_NAME,
            draw,
            measure,
            (trainer.iteration, self.config.length),
            self.site.ranks,
            self.config.until,
            partial(self.site.tell, prefix="curve/"),
        )

    @property
    def keeps_steps(self) -> bool:
        """Whether the model goes on drawing in many steps."""
        return isinstance(self.config, BaselineConfig)

    @property
    def result_bytes(self) -> int:
        """About what the erased model takes on the disk."""
        return sum(param.nbytes for param in self.original.parameters())

    def tried(self, values: Mapping[str, Any], copied: Callable[[nn.Module], nn.Module]) -> Self:
        """The same with other settings under these dotted keys, on copies of its networks.

        Raises:
            PeckerError: settings that do not go together.
        """
        other = copy.copy(self)
        other.objective = self.objective.around(copied(self.original), values)
        other.config = other.objective.config
        other._networks = {role: copied(network) for role, network in self._networks.items()}
        return other

    def start(self, directory: RunDirectory | None) -> Any:
        """Find the mask and make a trainer, which takes up what the run directory holds.

        The directory is None on all processes but the first.
        """
        objective, site = self.objective, self.site
        shared: Any = {
            "mask": site.mask, "run_directory": directory, "progress": True, "ranks": site.ranks
        }  # fmt: skip
        if isinstance(objective, MethodObjective):
            return BaselineTrainer(objective, **shared)
        return PeckerTrainer(objective, **shared, **dict[str, Any](self._networks))

    def card(self, trainer: Any) -> dict[str, Any]:
        """What the erased model says of how it was made."""
        made = {"iterations": trainer.iteration, "mask_digest": trainer.mask.digest}
        if isinstance(self.config, BaselineConfig):
            return {"method": self.config.method, **made}
        return {"t_init": self.objective.schedule.t_init, **made}

    @abstractmethod
    def finish(self, trainer: Any, *, over: bool = False) -> Any:
        """The erased model as it is now; once the run is `over`, in the memory of its network."""

    @abstractmethod
    def save(
        self, trainer: Any, model: Any, frozen: FrozenCheck, figures: Mapping[str, Any]
    ) -> Any:
        """The model with `figures` in its card, which the first process writes."""

    def notes(self, trainer: Any) -> Sequence[str]:
        """What is said as the run starts."""
        notes: Sequence[str] = trainer.notes
        return notes

    @abstractmethod
    def watch(self, trainer: Any) -> Callable[[], bool]:
        """What looks at the model before the first and after each iteration, on all processes.

        It returns whether the run is over before its end.
        """

    @abstractmethod
    def judge(self, erased: Erased) -> Report | None:
        """Look at what was made and write the report; None without one."""


def require_judge(config: PeckerConfig | BaselineConfig, judge: object) -> None:
    """Refuse `until` where nobody judges images."""
    if config.until is not None and judge is None:
        raise PeckerError(
            "erase: until looks at the images as the run goes; give a judge by --classifier, of a "
            "pipeline with --prompts FILE, or set until to null"
        )


def carry_out(task: Task) -> Erased:
    """Find the mask, train, save, compare the frozen entries, judge; on every process of a run.

    Raises:
        PeckerError: an unknown backend, a mask of another model, a directory that holds another
            run or other things, a loss that is not finite.
    """
    site, config = task.site, task.config
    backend = backends.name_of(backends.select(config.optimizer.backend, site.device))
    if site.mask is not None:
        site.mask.check(dict(task.original.named_parameters()))
    with run_directory(site.out, site.force, site.ranks) as directory, naming_settings(config):
        trainer = _started(task, directory)
        resumed_at = trainer.iteration
        mask_seconds = _train(task, trainer)
        erased = _saved(task, trainer, mask_seconds, {"backend": backend, "resumed_at": resumed_at})
        erased = replace(erased, report=task.judge(erased))
        if erased.report is not None:
            site.tell(scalars(erased.report.figures), trainer.iteration, "report/")
        site.ranks.first(lambda: write_card(erased, site.base_model))
        return erased


def _started(task: Task, directory: RunDirectory | None) -> Any:
    """The trainer, its mask found; says what is to be known."""
    site, clock = task.site, task.site.clock
    is_new = directory is not None and not directory.iterations()
    with clock.stage("mask"):
        trainer = task.start(directory)
    begun: dict[str, Any] = {"start": dict(task.starts)}
    if site.mask is None and task.config.mask.kind == "saliency":
        begun["mask_seconds"] = round(clock.stages["mask"], 2)
    begun["digest"] = digest_of(begun)
    # A later start neither finds a mask nor times that.
    site.ranks.first(lambda: _write_json(site.out / START_NAME, begun) if is_new else None)
    notes = "; ".join(task.notes(trainer))
    note(notes)
    site.tell({"notes": notes}, trainer.iteration)
    if trainer.iteration:
        note(f"resuming at iteration {trainer.iteration} of {task.config.iterations}")
    return trainer


def _train(task: Task, trainer: Any) -> float | None:
    """Train to the end, or until the model is judged to have forgotten; see `_mask_seconds`."""
    site, ranks = task.site, task.site.ranks
    # Files of the run that cannot be read are refused before any of it is removed.
    mask_seconds, look = _mask_seconds(site.out), task.watch(trainer)
    if ranks.is_first:
        for name in (FROZEN_NAME, PATCH_NAME, ATTACK_NAME, *REPORT_NAMES):
            # Of an earlier state: must not stand beside a new one.
            (site.out / name).unlink(missing_ok=True)
    with site.clock.stage("erase"):
        over = look()
        steps = iter(()) if over else trainer.run()
        for done in saving_at_interrupt(steps, lambda: trainer.iteration, trainer.save, ranks):
            site.tell(done.losses or {}, done.iteration, "loss/")
            if over := look():
                trainer.save()
                break
        if over:
            note(
                f"over at iteration {trainer.iteration} of {task.config.iterations}, after "
                f"{trainer.stopwatch.seconds:.0f} s of training: gone, and the rest kept"
            )
    return mask_seconds


def _saved(
    task: Task, trainer: Any, mask_seconds: float | None, facts: Mapping[str, Any]
) -> Erased:
    """The erased model, written, and the proof that frozen entries kept their bits."""
    site, config, clock = task.site, task.config, task.site.clock
    with clock.stage("save"):
        machine, software = machine_facts(site.device), versions()
        training = {
            "seconds": round(trainer.stopwatch.seconds, 2),
            "processes": site.ranks.size,
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
        site.ranks.first(lambda: _write_json(site.out / FROZEN_NAME, frozen.to_dict()))
        model = task.save(trainer, model, frozen, figures)
    run = RunFacts(
        frozen=frozen,
        mask=config.mask.kind if site.mask is None else "given",
        density=trainer.mask.density,
        iterations=trainer.iteration,
        seed=config.seed,
        wall_s=clock.total(),
        stage_s=clock.stages,
        machine=machine,
        versions=software,
        config=config.flat(),
        training_s=trainer.stopwatch.seconds,
        processes=site.ranks.size,
        **facts,
    )
    return Erased(out=site.out, model=model, mask=trainer.mask, frozen=frozen, facts=run)


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
