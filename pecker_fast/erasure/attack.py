"""Attacks on an erased model or pipeline: asked in every other way, and taught again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pecker_fast.erasure.attack_result import SHOTS, STEPS, Attacked, retrained_figures, words_of
from pecker_fast.erasure.attack_subjects import subject_of
from pecker_fast.erasure.request import Judges
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.page import Sentence, Table, add_attack
from pecker_fast.evaluate.sweep import Asked, Subject
from pecker_fast.files import read_json, write_text
from pecker_fast.methods.relearning import RATES, attacked, shots_of
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.directory import ATTACK_NAME, REPORT_NAMES
from pecker_fast.runs.finding import find_model, find_pipeline, holds_run

__all__ = ["Attacked", "attack"]


def attack(
    run: Path | ModelFolder | PipelineFolder,
    classifier: Path | None = None,
    *,
    prompts: Path | None = None,
    clip: Path | None = None,
    nudity_detector: Path | None = None,
    nudity_channel_order: str | None = None,
    faces: str | None = None,
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
        prompts: of a pipeline, a CSV file as of `read_prompt_file`: rows of the group forget name
            what was forgotten, those of neighbours and keep what was not; what each names is its
            label, a class of the classifier.
        clip: or a CLIP folder judges prompts: which of the labels in the file an image is nearest.
        nudity_detector: or an ONNX file in NudeNet's format; labels are not looked at.
        nudity_channel_order: "rgb" or "bgr". None: "rgb".
        faces: or a recogniser, trusted:MODULE:OBJECT, whose names are the labels.
        forget: the class, of a pipeline that which the concept is, or its label in the file. None:
            what it says that it forgot, the only label of the group forget.
        original: what it was before, which draws the images to teach it with. None: no teaching.
        retrained: what `attack --json` printed for a model that was trained without it, attacked
            with the same original. None: `retrained.json` in that folder,
            if it is there.
        images: of it in each way of asking.
        seed: of the noise.
        device: where to work.

    Raises:
        PeckerError: no model, no classifier of its classes, a class that nobody names, or prompts
            that no classifier knows.
    """
    model = _loaded(run)
    model.network.to(device).eval()
    judges = Judges(
        classifier=classifier, clip=clip, nudity_detector=nudity_detector,
        nudity_channel_order=nudity_channel_order, faces=faces,
    )  # fmt: skip
    subject = subject_of(
        model, judges, prompts=prompts, forget=forget, images=images, seed=seed, device=device,
        run=run if isinstance(run, Path) else None,
    )  # fmt: skip
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


def _taught(subject: Subject, original: ModelFolder | PipelineFolder) -> Iterator[Asked]:
    """Both attacks, with images that the original draws."""
    shots = shots_of(subject, original, SHOTS)
    for kind in RATES:
        for steps, taught in attacked(subject, shots, kind, STEPS[kind]):
            words = words_of(kind, steps)
            yield taught.ask(replace(subject.look, words=words), keep=False)
