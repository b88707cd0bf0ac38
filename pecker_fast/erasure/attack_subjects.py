"""What an attack asks, and who judges the answers: classes, or prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pecker_fast.datasets.prompt_files import read_prompt_file
from pecker_fast.erasure.prompt_judges import captions_of, check_judges, namer
from pecker_fast.erasure.request import Judges
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.sample_plan import GUIDANCE
from pecker_fast.evaluate.sweep import ClassSubject, PromptSubject, Subject
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
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
    check_judges(judges, prompts)
    if isinstance(model, PipelineFolder):
        if prompts is None:
            raise PeckerError(
                f"attack: {model.path}: nobody knows what its prompts name; give --prompts "
                "FILE.csv with the columns prompt, group and label"
            )
        said = [str(prompt) for prompt in model.description.get("forget", ())]
        captions = captions_of(said, read_prompt_file(prompts), judges, forget, images)
        return PromptSubject(
            pipeline=model,
            captions=captions,
            seen=namer(judges, captions.class_names, device),
            guidance=_guidance(run),
            seed=seed,
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


def _guidance(run: Path | None) -> float:
    """With which a run's original was drawn; else diffusers' own."""
    if run is None or not (run / "config.yaml").is_file():
        return GUIDANCE
    config: Any = read_yaml(run / "config.yaml")
    try:
        return float(config["text"]["guidance"]["kappa4"])
    except (KeyError, TypeError, ValueError):
        return GUIDANCE
