"""Attacks on an erased model or pipeline: asked in every other way, and taught again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pecker_fast.datasets.fashion_captions import held_back_captions, named_captions
from pecker_fast.datasets.fashion_mnist import CLASS_NAMES
from pecker_fast.erasure.attack_result import SHOTS, STEPS, Attacked, retrained_figures, words_of
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.fashion_concept import fashion_concept
from pecker_fast.evaluate.page import Sentence, Table, add_attack
from pecker_fast.evaluate.prompt_plan import GUIDANCE
from pecker_fast.evaluate.sweep import Asked, ClassSubject, PromptSubject, Subject
from pecker_fast.files import read_json, write_text
from pecker_fast.methods.relearning import RATES, attacked, shots_of
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.classes import class_index
from pecker_fast.runs.finding import find_model, find_pipeline, holds_run
from pecker_fast.runs.outputs import ATTACK_NAME, REPORT_NAMES
from pecker_fast.runs.reading import read_yaml

__all__ = ["Attacked", "attack"]


def attack(
    run: Path | ModelFolder | PipelineFolder,
    classifier: Path,
    *,
    forget: str | int | None = None,
    original: Path | None = None,
    retrained: Path | None = None,
    images: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Attacked:
    """Ask what was erased for what it forgot in every other way, and teach it that again.

    Args:
        run: a run, the folder of a model or a pipeline, or one in memory. In a run `attack.json` is
            written.
        classifier: tells whether it is there.
        forget: the class, of a pipeline that which the concept is. None: what it says that it
            forgot.
        original: what it was before, which draws the images to teach it with. None: no teaching.
        retrained: what `attack --json` printed for a model that was trained without it, attacked
            with the same original. None: what ships for a class of the shipped teacher.
        images: of it in each way of asking.
        seed: of the noise.
        device: where to work.

    Raises:
        PeckerError: no model, no classifier of its classes, a class that nobody names, or prompts
            that no classifier knows.
    """
    model = _loaded(run)
    model.network.to(device).eval()
    subject: Subject
    if isinstance(model, PipelineFolder):
        folder = run if isinstance(run, Path) else None
        subject = _of_prompts(model, folder, classifier, forget, images, seed, device)
    else:
        subject = _of_classes(model, classifier, forget, images, seed, device)
    yardstick = retrained_figures(subject.name, original, retrained)
    before = None if original is None else _loaded(original)
    if before is not None:
        if not isinstance(before, type(model)):
            raise PeckerError(
                f"attack: --original {original}: of the two one is told classes, the other "
                "prompts; give what the erased one was before"
            )
        before.network.to(device).eval()
    asked = tuple(subject.ask(way) for way in subject.ways())
    taught = () if before is None else tuple(_taught(subject, before))
    result = Attacked(subject.name, asked, taught, yardstick)
    if isinstance(run, Path) and holds_run(run):
        _write(run, result)
    return result


def _write(run: Path, found: Attacked) -> None:
    """attack.json, and the same in the run's report."""
    write_text(run / ATTACK_NAME, json.dumps(found.to_dict(), indent=2) + "\n")
    report, page = (run / name for name in REPORT_NAMES)
    if report.is_file() and isinstance(told := read_json(report), dict):
        told = {**told, "attack": found.to_dict()}
        write_text(report, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    if page.is_file():
        ways = Table("Every way of asking", found.rows(), found.columns)
        text = "; ".join(filter(None, [found.headline, found.taught_sentence]))
        said = Sentence(f"Asked in other ways: {text}.", bad=bool(found.open))
        add_attack(page, said, ways)


def _loaded(given: Path | ModelFolder | PipelineFolder) -> ModelFolder | PipelineFolder:
    """The model or pipeline at a path, or of the run there."""
    if not isinstance(given, Path):
        return given
    found = find_pipeline(given)
    return ModelFolder.load(find_model(given)) if found is None else PipelineFolder.load(found)


def _of_classes(
    model: ModelFolder, classifier: Path, forget: str | int | None, images: int, seed: int,
    device: torch.device | str,
) -> ClassSubject:  # fmt: skip
    judge = load_classifier(classifier, model.class_names).to(device)
    name = model.figures.get("forget") if forget is None else forget
    if name is None:
        raise PeckerError(
            "attack: the model does not say which class it has forgotten; give --forget"
        )
    return ClassSubject(
        model=model, forget=model.class_index(name), classifier=judge, images=images, seed=seed
    )


def _of_prompts(
    pipeline: PipelineFolder, run: Path | None, classifier: Path, forget: str | int | None,
    images: int, seed: int, device: torch.device | str,
) -> PromptSubject:  # fmt: skip
    """With captions of Fashion-MNIST: of other prompts no classifier knows what they name."""
    names = tuple(CLASS_NAMES)
    if tuple(pipeline.description.get("class_names", ())) != names:
        raise PeckerError(
            f"attack: {pipeline.path}: no classifier knows what its prompts name; of pipelines the "
            "shipped one can be attacked, whose prompts name classes of Fashion-MNIST"
        )
    said = [str(prompt) for prompt in pipeline.description.get("forget", ())]
    of_label = [{*named_captions(label), *held_back_captions(label)} for label in range(len(names))]
    if forget is None:
        labels = [label for label, known in enumerate(of_label) if known.intersection(said)]
        if len(labels) != 1:
            raise PeckerError(
                "attack: the pipeline does not say of one class that it has forgotten it; give "
                "--forget"
            )
        label = labels[0]
    else:
        label = class_index(forget, names, "the pipeline")
    told = [prompt for prompt in said if prompt in of_label[label]]
    captions = fashion_concept(
        label, None, max(2, -(-images // (len(names) - 1))), seed, told or None, images
    )
    return PromptSubject(
        pipeline=pipeline,
        captions=captions,
        classifier=load_classifier(classifier, names).to(device),
        guidance=_guidance(run),
        seed=seed,
    )


def _guidance(run: Path | None) -> float:
    """With which a run's original was drawn; else diffusers' own."""
    if run is None or not (run / "config.yaml").is_file():
        return GUIDANCE
    config: Any = read_yaml(run / "config.yaml")
    try:
        return float(config["text"]["guidance"]["kappa4"])
    except (KeyError, TypeError, ValueError):
        return GUIDANCE


def _taught(subject: Subject, original: ModelFolder | PipelineFolder) -> Iterator[Asked]:
    """Both attacks, with images that the original draws."""
    shots = shots_of(subject, original, SHOTS)
    for kind in RATES:
        for steps, taught in attacked(subject, shots, kind, STEPS[kind]):
            words = words_of(kind, steps)
            yield taught.ask(replace(subject.look, words=words), keep=False)
