"""What `compare` knows of a run: from the files of its directory, or from an `evaluate` report.

config.yaml              method, mask, seed, length; every run has it
model/pecker_fast.json   iterations, forgotten class, what the run started from
start.json               what a run that goes on started from
frozen.json              frozen parameters, and how many of them changed; else report.json
report.json              training time, machine, the run's own figures
curve.json               measurements during the run
evaluate.json            figures of `pecker-fast evaluate RUN --json RUN/evaluate.json`, which
                         count more than the run's own
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.comparison import Run, Start
from pecker_fast.evaluate.curve import read_curve
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.judgement import Judgement, Written
from pecker_fast.files import read_json, shown
from pecker_fast.runs.reading import checked, read_yaml

__all__ = ["Begun", "read_runs"]

W = TypeVar("W", bound=Written)

_BASELINES = {
    "random_label": "SalUn",
    "negative_gradient": "NegGrad",
    "fine_tune": "fine-tuning",
    "esd": "ESD",
}


class _Config(Written):
    """config.yaml: of a distillation, of a method on real images, or of the training of a teacher.

    That of a concept has a `text`, that of a classifier an `arch`.
    """

    iterations: NonNegativeInt
    seed: int
    forget: int | str | None = None
    without: int | str | None = None
    mask: dict[str, Any] | None = None
    method: str | None = None
    generator: dict[str, Any] | None = None
    text: Any = None
    arch: Any = None


class _Trained(Written):
    """What a model's figures say of its training; or of a network that its run started from."""

    path: str = "an unnamed network"
    kind: str | None = None
    iterations: NonNegativeInt | None = None
    seconds: NonNegativeFloat | None = None
    processes: PositiveInt = 1
    machine: dict[str, Any] = Field(default={})
    device_name: str | None = None
    start: dict[str, _Trained] = Field(default={})

    @property
    def device(self) -> str | None:
        """What it ran on, if that is known."""
        name = self.machine.get("device_name") or self.device_name
        return f"{self.processes} x {name}" if name and self.processes > 1 else name


class _Figures(Written):
    forget: str | None = None
    iterations: NonNegativeInt | None = None
    mask_digest: str | None = None
    training: _Trained = _Trained()
    start: dict[str, _Trained] | None = None


class _Description(Written):
    """pecker_fast.json of the model that the run made."""

    figures: _Figures = _Figures()


class Begun(Written):
    """start.json: how a run began."""

    start: dict[str, _Trained] = Field(default={})
    mask_seconds: NonNegativeFloat | None = None


class _Report(Written):
    """report.json, and of it what frozen.json has; where nothing was judged there is no `after`."""

    after: Evaluation = cast(Any, None)  # may be missing, but not null
    mask: str | None = None
    frozen_parameters: NonNegativeInt | None = None
    frozen_changed: NonNegativeInt | None = None
    salient_parameters: NonNegativeInt | None = None

    @property
    def density(self) -> float | None:
        """The share of the entries that could change."""
        if self.frozen_parameters is None or self.salient_parameters is None:
            return None
        return self.salient_parameters / max(self.salient_parameters + self.frozen_parameters, 1)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read each path: the directory of a run, or a JSON file of `evaluate`.

    Raises:
        PeckerError: it is neither of the two, a file in it is damaged, or its `evaluate.json` is
            of an earlier state of the model.
    """
    names = [path.resolve().name.removesuffix(".json") for path in paths]
    for path in paths:
        if [other.resolve() for other in paths].count(path.resolve()) > 1:
            raise PeckerError(f"compare: {path} is given twice; name each run once")
    return [
        (_read_report if path.is_file() else _read_run)(
            path, name if names.count(name) == 1 else str(path)
        )
        for path, name in zip(paths, names, strict=True)
    ]


def _read_report(path: Path, name: str) -> Run:
    judgement = Judgement.read(path)
    kind = judgement.trained.get("kind") or "model"
    return Run(
        name=name,
        method="images" if judgement.from_files else f"{kind}, as it is",
        forget=judgement.name(judgement.forget),
        evaluation=judgement.evaluation,
        fidelity=judgement.fidelity,
    )


def _read_run(path: Path, name: str) -> Run:
    config = _config(path)
    report = _read(_Report, path / "report.json")
    proof = _read(_Report, path / "frozen.json", report)
    description = _read(_Description, path / "model" / "pecker_fast.json")
    figures, training = description.figures, description.figures.training
    given = config.without if config.forget is None else config.forget
    forget = figures.forget or (f"class {given}" if isinstance(given, int) else given)
    evaluation, fidelity = report.after, None
    if (file := path / "evaluate.json").is_file():
        judgement = Judgement.read(file)
        _check_same_model(file, judgement.trained, figures)
        judged = judgement.name(judgement.forget)
        forget = forget or judged
        if forget != (judged or forget):
            raise PeckerError(
                f"{file}: judges how {judged!r} was forgotten, the run forgets {forget!r}; "
                f"evaluate it again with --forget {forget!r}"
            )
        evaluation, fidelity = judgement.evaluation or evaluation, judgement.fidelity
    curve = tuple(read_curve(path / "curve.json"))
    done = training.iterations if figures.iterations is None else figures.iterations
    seconds = training.seconds
    if curve:  # a run that is not finished yet is where its curve is
        done = curve[-1].iteration if done is None else done
        if seconds is None and curve[-1].iteration == done:
            seconds = curve[-1].wall_s
    mask = None if config.mask is None else report.mask or str(config.mask.get("kind"))
    begun = Begun() if mask is None else _read(Begun, path / "start.json")
    start = _start(begun.start if figures.start is None else figures.start)
    return Run(
        name=name,
        method=_method(config, mask, start),
        forget=forget,
        mask=mask,
        density=proof.density,
        frozen_changed=proof.frozen_changed if proof.frozen_parameters else None,
        iterations=done,
        planned=config.iterations,
        wall_s=seconds,
        start=start,
        device=training.device,
        seed=config.seed,
        evaluation=evaluation,
        fidelity=fidelity,
        curve=curve,
    )


def _config(path: Path) -> _Config:
    file = path / "config.yaml"
    if not file.is_file():
        if not path.exists():
            raise PeckerError(f"compare: {path}: no such file or folder")
        raise PeckerError(
            f"compare: {path}: no run: config.yaml is missing; give the folder of `erase --out` or "
            "`train-teacher --out`, or a file of `evaluate --json`"
        )
    config = checked(_Config, read_yaml(file), file)
    if config.text is not None or config.arch is not None:
        concept = config.text is not None
        found = "erases a concept from a pipeline" if concept else "trains a classifier"
        raise PeckerError(f"compare: {path}: {found}; compare runs that erase a class")
    return config


def _start(given: Mapping[str, _Trained]) -> Start | None:
    """All training before the run, by the facts of the networks that it was given.

    A teacher's own training does not count: it is behind every run. Networks of one run have its
    figures in common, which count once.
    """
    trained = list(_trained(given))
    counts = dict.fromkeys((facts.iterations, facts.seconds) for facts in trained)
    iterations = [count for count, _ in counts if count is not None]
    wall = [seconds for _, seconds in counts if seconds is not None]
    start = Start(
        path=", then ".join(dict.fromkeys(facts.path for facts in trained)),
        iterations=sum(iterations) if len(iterations) == len(counts) else None,
        wall_s=sum(wall) if len(wall) == len(counts) else None,
        device=", then ".join(dict.fromkeys(facts.device or "unknown" for facts in trained)),
    )
    return start if trained else None


def _trained(given: Mapping[str, _Trained]) -> Iterator[_Trained]:
    """Yield the networks that are no teachers, what their own runs started from first."""
    for facts in given.values():
        if facts.kind != "teacher":
            yield from _trained(facts.start)
            yield facts


def _method(config: _Config, mask: str | None, start: Start | None) -> str:
    """As the literature calls it."""
    if config.method is not None:
        if mask == "full" and config.method == "random_label":
            return "random labels"  # SalUn is named after its mask
        return _BASELINES.get(config.method, config.method)
    if config.generator is None:  # of train-teacher
        return "training" if config.without is None else "retraining"
    if config.forget is None:
        return "distillation"
    method = "SFD" if mask == "full" else "PECKER"
    return method if start is None else f"{method}, two stages"


def _check_same_model(file: Path, judged: Mapping[str, Any], figures: _Figures) -> None:
    for key in ("iterations", "mask_digest"):
        now = getattr(figures, key)
        if key in judged and now is not None and judged[key] != now:
            raise PeckerError(
                f"{file}: judges the model of another state of the run ({key} "
                f"{shown(judged[key])}, now {now}); evaluate it again, or remove the file"
            )


def _read(schema: type[W], file: Path, default: W | None = None) -> W:
    """What a file says, or `default` (None: nothing at all) where there is no file."""
    if os.path.lexists(file):
        return checked(schema, read_json(file), file)
    return schema() if default is None else default
