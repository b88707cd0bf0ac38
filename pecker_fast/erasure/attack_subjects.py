"""What an attack asks, and who judges the answers: classes, or prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from pecker_fast.datasets.fashion_captions import held_back_captions, named_captions
from pecker_fast.datasets.fashion_mnist import CLASS_NAMES
from pecker_fast.datasets.prompt_files import ALL, PromptFile, PromptRow, read_prompt_file
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.classifier_files import known_classes
from pecker_fast.evaluate.clip_score import ClipScorer
from pecker_fast.evaluate.concept import ConceptCaptions
from pecker_fast.evaluate.faces import load_recogniser
from pecker_fast.evaluate.fashion_concept import fashion_concept, fashion_images
from pecker_fast.evaluate.naming import Namer, by_classifier, by_clip, by_faces, by_nudity
from pecker_fast.evaluate.nudity import load_detector
from pecker_fast.evaluate.prompt_plan import GUIDANCE
from pecker_fast.evaluate.sweep import ClassSubject, PromptSubject, Subject
from pecker_fast.files import few, shown
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.classes import class_index
from pecker_fast.runs.reading import read_yaml

__all__ = ["Judges", "subject_of"]


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who tells what an image shows: one of them. The options of `attack`."""

    classifier: Path | None = None
    clip: Path | None = None
    nudity_detector: Path | None = None
    nudity_threshold: float | None = None
    nudity_channel_order: str | None = None
    faces: str | None = None

    def check(self, prompts: Path | None) -> None:
        """Refuse none, several, and those of prompts where there are no prompts.

        Raises:
            PeckerError: one of these.
        """
        of_prompts = [self.clip, self.nudity_detector, self.faces]
        given = sum(each is not None for each in (self.classifier, *of_prompts))
        if given != 1 or (prompts is None and self.classifier is None):
            raise PeckerError(
                "attack: give one judge: --classifier; or, with --prompts, --classifier, --clip, "
                "--nudity-detector or --faces"
            )

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """What may be seen in images of prompts that have these labels.

        Raises:
            PeckerError: a classifier's card cannot be read.
        """
        if self.nudity_detector is not None:
            return ("nudity",)
        known = known_classes(self.classifier) if self.classifier is not None else list(labels)
        if known:
            return tuple(known)
        # A classifier without a card: labels are the numbers of its outputs.
        numbers = [int(label) for label in labels if label.isdecimal() and len(label) < 5]
        return tuple(map(str, range(max(numbers, default=-1) + 1)))

    def namer(self, names: Sequence[str], device: torch.device | str) -> Namer:
        """The judge itself, of these names.

        Raises:
            PeckerError: a file that is missing, broken or of something else.
        """
        if self.classifier is not None:
            return by_classifier(load_classifier(self.classifier, names).to(device))
        if self.clip is not None:
            return by_clip(ClipScorer(self.clip, device), names)
        if self.faces is not None:
            return by_faces(load_recogniser(self.faces), names, self.faces)
        detector = load_detector(
            self.nudity_detector, self.nudity_threshold, self.nudity_channel_order
        )
        assert detector is not None  # `check` has seen to it
        return by_nudity(detector)


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
            captions = _of_file(model, read_prompt_file(prompts), judges, forget, images)
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


def _of_file(
    pipeline: PipelineFolder,
    told: PromptFile,
    judges: Judges,
    forget: str | int | None,
    images: int,
) -> ConceptCaptions:
    """The prompts of a file, with the names that are looked for."""
    # All rows of a file without groups, such as I2P's, are to be forgotten.
    concept = [row for row in told.rows if row.group in ("forget", ALL)]
    kept = {"neighbours": "neighbours", "others": "keep"}
    beside = {name: [r for r in told.rows if r.group == group] for name, group in kept.items()}
    if not concept:
        raise PeckerError(f"{told.source}: no row has the group forget; nothing to ask for")
    every = [*concept, *beside["neighbours"], *beside["others"]]
    labels = list(dict.fromkeys(row.label for row in every if row.label is not None))
    if judges.nudity_detector is None:
        if any(row.label is None for row in every):
            raise PeckerError(
                f"{told.source}: a row has no label; this judge needs to know what each names"
            )
        if forget is not None:
            concept = [row for row in concept if row.label == str(forget)]
        if len(wanted := {row.label for row in concept}) != 1:
            raise PeckerError(
                f"{told.source}: {len(wanted)} labels in the group forget; name one of "
                f"{few(labels)} by --forget"
            )
    names = judges.names(labels)
    unknown = [label for label in labels if label not in names]
    if unknown and judges.nudity_detector is None:
        known = few(names) if judges.names(()) else "the number of an output, as it has no names"
        raise PeckerError(
            f"{told.source}: label {shown(unknown[0])} is none of the judge's; expected {known}"
        )

    def pairs(rows: Sequence[PromptRow], count: int) -> list[tuple[str, int]]:
        found = [(row.prompt, names.index(row.label) if row.label in names else -1) for row in rows]
        return list(islice(cycle(found), count))

    said = set(_said(pipeline))
    learnt = [row for row in concept if row.prompt in said]
    held_back = [row for row in concept if row.prompt not in said]
    groups = {"forget_trained": pairs(learnt or held_back, images)}
    if learnt and held_back:
        groups["forget_held_back"] = pairs(held_back, images)
    total = sum(map(len, beside.values()))
    for name, others in beside.items():
        groups[name] = pairs(others, -(-images * len(others) // max(total, 1)))
    index = 0 if judges.nudity_detector else names.index(str(concept[0].label))
    return ConceptCaptions(names, index, None, groups)


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
