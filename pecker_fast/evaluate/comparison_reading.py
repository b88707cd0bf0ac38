"""What `compare` knows of a run: from the files of its directory, or from an `evaluate` report.

config.yaml              method, mask, seed, length; every run has it
mask.safetensors         density
model/pecker_fast.json   iterations, forgotten class, class names, what the run started from
start.json               the same of a run that goes on, and how long finding the mask took
frozen.json              frozen parameters, and how many of them changed; else report.json
report.json              training time, machine, the run's own figures
curve.json               measurements during the run
evaluate.json            figures of `pecker-fast evaluate RUN --json RUN/evaluate.json`, which
                         count more than the run's own
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.comparison import Run, Start
from pecker_fast.evaluate.curve import read_curve
from pecker_fast.evaluate.judgement import Judgement, read_evaluation

__all__ = ["EVALUATION_NAME", "read_runs"]

EVALUATION_NAME = "evaluate.json"
_BASELINES = {
    "random_label": "SalUn",
    "negative_gradient": "NegGrad",
    "fine_tune": "fine-tuning",
    "esd": "ESD",
}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read each path: the directory of a run, or a JSON file of `evaluate`.

    Raises:
        PeckerError: it is neither of the two, a file in it is damaged, or its `evaluate.json` is
            of an earlier state of the model.
    """
    resolved = [path.resolve() for path in paths]
    for path, twice in zip(paths, resolved, strict=True):
        if resolved.count(twice) > 1:
            raise PeckerError(f"compare: {path} is given twice; name each run once")
    names = _names(resolved)
    return [
        _read_report(path, name) if path.is_file() else _read_run(path, name)
        for path, name in zip(paths, names, strict=True)
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as they must be to differ."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-length:])).removesuffix(".json") for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]  # a.json beside a


def _read_report(path: Path, name: str) -> Run:
    judgement = _judgement(path)
    evaluation = judgement.evaluation
    drawer = judgement.trained.get("kind")
    method = "images" if judgement.from_files else f"{drawer or 'model'}, as it is"
    return Run(
        name=name,
        path=str(path),
        method=method,
        forget=_forgotten(judgement),
        override=_name(judgement, None if evaluation is None else evaluation.override),
        evaluation=evaluation,
        fidelity=judgement.fidelity,
        versions=_words(judgement.versions),
    )


def _read_run(path: Path, name: str) -> Run:
    config = _config(path)
    report = _json(path / "report.json") or {}
    proof = _json(path / "frozen.json") or report
    description = _json(path / "model" / "pecker_fast.json") or {}
    names = description.get("class_names") or []
    figures = description.get("figures", {})
    training = figures.get("training", {})
    forget = _class_name(config.get("forget", config.get("without")), names)
    evaluation = read_evaluation(report["after"]) if "after" in report else None
    fidelity, versions = None, report.get("versions", {})
    if (path / EVALUATION_NAME).is_file():
        judgement = _judgement(path / EVALUATION_NAME)
        _check_same_model(path, judgement.trained, figures)
        forget = forget or _forgotten(judgement)
        if forget != (_forgotten(judgement) or forget):
            raise PeckerError(
                f"{path / EVALUATION_NAME}: judges how {_forgotten(judgement)!r} was forgotten, "
                f"the run forgets {forget!r}; evaluate it again with --forget {forget!r}"
            )
        evaluation, fidelity = judgement.evaluation or evaluation, judgement.fidelity
        versions = judgement.versions
    curve = tuple(read_curve(path / "curve.json"))
    last = curve[-1] if curve else None
    done = figures.get("iterations", training.get("iterations"))
    if done is None and last is not None:  # not finished yet
        done = last.iteration
    seconds = training.get("seconds")
    if seconds is None and last is not None and last.iteration == done:
        seconds = last.wall_s
    mask = str(report.get("mask", config["mask"]["kind"])) if "mask" in config else None
    begun = (_json(path / "start.json") or {}) if "mask" in config else {}
    start = _start(figures.get("start", begun.get("start", {})))
    return Run(
        name=name,
        path=str(path),
        method=_method(config, mask, names, start),
        forget=forget,
        override=_class_name(config.get("override"), names),
        mask=mask,
        density=_density(path / "mask.safetensors"),
        frozen=proof.get("frozen_parameters"),
        frozen_changed=proof.get("frozen_changed") if proof.get("frozen_parameters") else None,
        iterations=done,
        planned=config.get("iterations"),
        wall_s=seconds,
        start=start,
        mask_s=training.get("mask_seconds", begun.get("mask_seconds")),
        device=_device(training),
        seed=config.get("seed"),
        evaluation=evaluation,
        fidelity=fidelity,
        curve=curve,
        versions=_words(versions),
    )


def _config(path: Path) -> Mapping[str, Any]:
    file = path / "config.yaml"
    if not file.is_file():
        if not path.exists():
            raise PeckerError(f"compare: {path}: no such file or folder")
        raise PeckerError(
            f"compare: {path}: no run: config.yaml is missing; give the folder of `erase --out` or "
            "`train-teacher --out`, or a file of `evaluate --json`"
        )
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PeckerError(f"{file}: not valid YAML ({error}); start the run again") from error
    if not isinstance(config, dict) or not {"iterations", "seed"} <= config.keys():
        raise PeckerError(f"{file}: not the configuration of a run; give the folder of a run")
    if config.get("text") is not None:
        raise PeckerError(
            f"compare: {path}: a run that erases a concept from a text-to-image pipeline; compare "
            "runs that erase a class"
        )
    if "arch" in config:
        raise PeckerError(f"compare: {path}: trains a classifier; compare runs that erase a class")
    return config


def _start(given: Mapping[str, Any]) -> Start | None:
    """All training before the run, by the facts of the networks that it was given.

    A teacher's own training does not count: it is behind every run. Networks of one run have its
    figures in common, which count once.
    """
    trained = list(_trained(given))
    if not trained:
        return None
    counts = dict.fromkeys((facts.get("iterations"), facts.get("seconds")) for facts in trained)
    iterations = [count for count, _ in counts if count is not None]
    wall = [seconds for _, seconds in counts if seconds is not None]
    devices = dict.fromkeys(_device(facts) for facts in trained)
    return Start(
        path=", ".join(dict.fromkeys(str(facts["path"]) for facts in _trained(given, deep=False))),
        iterations=sum(iterations) if len(iterations) == len(counts) else None,
        wall_s=sum(wall) if len(wall) == len(counts) else None,
        device=", then ".join(name or "unknown" for name in devices),
    )


def _trained(given: Mapping[str, Any], deep: bool = True) -> Iterator[Mapping[str, Any]]:
    """The networks that are no teachers; `deep` also what their runs started from, first."""
    for facts in given.values():
        if facts.get("kind") != "teacher":
            if deep:
                yield from _trained(facts.get("start", {}))
            yield facts


def _method(
    config: Mapping[str, Any], mask: str | None, names: Sequence[str], start: Start | None
) -> str:
    """As the literature calls it."""
    if "method" in config:
        method = str(config["method"])
        if mask == "full" and method == "random_label":
            return "random labels"  # SalUn is named after its mask
        return _BASELINES.get(method, method)
    if "generator" not in config:  # of train-teacher
        without = _class_name(config.get("without"), names)
        return "training" if without is None else "retraining"
    if config.get("forget") is None:
        return "distillation"
    method = "SFD" if mask == "full" else "PECKER"
    return method if start is None else f"{method}, two stages"


def _check_same_model(path: Path, judged: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    for key in ("iterations", "mask_digest"):
        if key in judged and key in figures and judged[key] != figures[key]:
            raise PeckerError(
                f"{path / EVALUATION_NAME}: judges the model of another state of the run ({key} "
                f"{judged[key]}, now {figures[key]}); evaluate it again, or remove the file"
            )


def _judgement(path: Path) -> Judgement:
    values = _json(path) or {}
    try:
        return Judgement.from_dict(values)
    except PeckerError as error:
        raise PeckerError(f"{path}: {error}") from None


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None where there is no file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise PeckerError(f"{path}: not valid JSON ({error}); write it again") from error
    if not isinstance(values, dict):
        raise PeckerError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def _density(path: Path) -> float | None:
    """From the metadata of a mask file alone: its positions take long to unpack."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            return float((file.metadata() or {})["density"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise PeckerError(f"{path}: cannot be read as a mask ({error}); remove it") from error


def _class_name(given: Any, names: Sequence[str]) -> str | None:
    """The name of a class that a configuration names or numbers."""
    if given is None or given == "random":
        return None if given is None else str(given)
    for index, name in enumerate(names):
        if str(given).lower() in (name.lower(), str(index)):
            return name
    return str(given) if isinstance(given, str) else f"class {given}"


def _forgotten(judgement: Judgement) -> str | None:
    return _name(judgement, judgement.forget)


def _name(judgement: Judgement, index: int | None) -> str | None:
    return None if index is None else judgement.class_names[index]


def _device(facts: Mapping[str, Any]) -> str | None:
    """What training ran on, of the facts of a network or of what a run says of its training."""
    name = facts.get("machine", facts).get("device_name")
    processes = facts.get("processes", 1)
    return name if name is None or processes == 1 else f"{processes} x {name}"


def _words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
