"""What an attack asks, and who judges the answers: classes, or prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pecker_fast.datasets.fashion_captions import held_back_captions, named_captions
from pecker_fast.datasets.fashion_mnist import CLASS_NAMES
from pecker_fast.datasets.prompt_files import read_prompt_file
from pecker_fast.erasure.prompt_judges import Judges, captions_of
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.concept import ConceptCaptions
from pecker_fast.evaluate.fashion_concept import fashion_concept, fashion_images
from pecker_fast.evaluate.naming import Namer, by_classifier
from pecker_fast.evaluate.prompt_plan import GUIDANCE
from pecker_fast.evaluate.sweep import ClassSubject, PromptSubject, Subject
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.classes import class_index
from pecker_fast.runs.reading import read_yaml

__all__ = ["subject_of"]


def subject_of(
    model: ModelFolder | PipelineFolder,
    judges: Judges,
    *,
    prompts: Path | None,
    forget: str | int | None,
    run: Path | None,
    images: int,
    seed: int,
    device: torch.device | str,
) -> Subject:
    """What is attacked; the arguments are those of `attack`.

    Raises:
        PeckerError: a judge that does not fit, a class that nobody names, or prompts that nobody
            knows.
    """
    judges.check(prompts)
    if isinstance(model, PipelineFolder):
        if prompts is None:
            captions, seen = _of_fashion(model, judges, forget, images, seed, device)
        else:
            told = read_prompt_file(prompts)
            captions = captions_of(_said(model), told, judges, forget, images)
            seen = judges.namer(captions.class_names, device)
        return PromptSubject(
            pipeline=model, captions=captions, seen=seen, guidance=_guidance(run), seed=seed
        )
    if prompts is not None or judges.classifier is None:
        raise PeckerError("attack: --prompts is for pipelines; this model is told classes")
    name = model.figures.get("forget") if forget is None else forget
    if name is None:
        raise PeckerError(
            "attack: the model does not say which class it has forgotten; give --forget"
        )
    return ClassSubject(
        model=model,
        forget=model.class_index(name),
        classifier=load_classifier(judges.classifier, model.class_names).to(device),
        images=images,
        seed=seed,
    )


def _said(pipeline: PipelineFolder) -> list[str]:
    """The prompts that a pipeline says it has forgotten."""
    return [str(prompt) for prompt in pipeline.description.get("forget", ())]


def _of_fashion(
    pipeline: PipelineFolder,
    judges: Judges,
    forget: str | int | None,
    images: int,
    seed: int,
    device: torch.device | str,
) -> tuple[ConceptCaptions, Namer]:
    """Captions of Fashion-MNIST, which the shipped pipeline is told, and its classifier."""
    names = tuple(CLASS_NAMES)
    if tuple(pipeline.description.get("class_names", ())) != names:
        raise PeckerError(
            f"attack: {pipeline.path}: nobody knows what its prompts name; give --prompts FILE.csv "
            "with the columns prompt, group and label"
        )
    said = _said(pipeline)
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
    assert judges.classifier is not None  # `check` has seen to it
    judge = load_classifier(judges.classifier, names).to(device)
    return captions, by_classifier(judge, fashion_images)


def _guidance(run: Path | None) -> float:
    """With which a run's original was drawn; else diffusers' own."""
    if run is None or not (run / "config.yaml").is_file():
        return GUIDANCE
    config: Any = read_yaml(run / "config.yaml")
    try:
        return float(config["text"]["guidance"]["kappa4"])
    except (KeyError, TypeError, ValueError):
        return GUIDANCE
