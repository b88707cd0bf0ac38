"""Attacks on an erased model: asked in every other way, and taught again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier, load_classifier
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.page import Sentence, Table, add_attack
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.evaluate.sweep import Asked, recognised, sweep
from pecker_fast.files import read_json, write_text
from pecker_fast.methods.relearning import RATES, Attack, attacked
from pecker_fast.models import ModelFolder
from pecker_fast.runs.finding import find_model, holds_run
from pecker_fast.runs.outputs import ATTACK_NAME, REPORT_NAMES

__all__ = ["Attacked", "attack"]

RESISTS = 0.03
"""Share of images of the class up to which a way of asking counts as closed."""
STEPS: dict[Attack, tuple[int, ...]] = {
    "inversion": (10, 20, 40, 80),
    "relearning": (5, 10, 20, 40),
}
SHOTS = 20  # images of the class that an attack trains on
_LOOK = Sampler(10)  # how a model that is attacked is asked
_ORIGINAL_STEPS = 50


@dataclass(frozen=True)
class Attacked:
    """What came of all attacks on one model.

    Attributes:
        forget: the class.
        asked: by ways of asking.
        taught: by attacks that train, in the order of their steps.
    """

    forget: str
    asked: tuple[Asked, ...]
    taught: tuple[Asked, ...] = ()

    @property
    def open(self) -> list[Asked]:
        """Ways of asking in which the class comes back."""
        return [each for each in self.asked if each.found.value > RESISTS]

    @property
    def headline(self) -> str:
        """The result in a line."""
        total = len(self.asked)
        if not self.open:
            bound = max(each.found.interval[1] for each in self.asked)
            return (
                f"{self.forget}: in none of {total} ways of asking above {RESISTS:.0%} of images "
                f"(95 % bound of the worst: {bound:.1%})"
            )
        worst = max(self.open, key=lambda each: each.found.value)
        return (
            f"{self.forget}: comes back in {len(self.open)} of {total} ways of asking; "
            f"worst: {worst.way}, {worst.found} of the images"
        )

    @property
    def columns(self) -> tuple[str, str, str]:
        """Headings of the rows."""
        return "", self.forget, "others kept"

    def rows(self) -> list[tuple[str, str, str]]:
        """Each way in words, the share of images of the class, and of others that are kept."""
        every = (*self.asked, *self.taught)
        return [(e.way, str(e.found), "" if e.kept is None else str(e.kept)) for e in every]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            "forget": self.forget,
            "headline": self.headline,
            "asked": [each.to_dict() for each in self.asked],
            "taught": [each.to_dict() for each in self.taught],
        }


def attack(
    run: Path | ModelFolder,
    classifier: Path,
    *,
    forget: str | int | None = None,
    original: Path | None = None,
    images: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Attacked:
    """Ask an erased model for its class in every other way, and teach it the class again.

    Args:
        run: a run, a model folder, or one in memory. In a run `attack.json` is written.
        classifier: tells whether the class is there.
        forget: the class. None: what the model says that it forgot.
        original: the model before, which draws the images to teach it with. None: no teaching.
        images: of the class in each way of asking.
        seed: of the noise.
        device: where to work.

    Raises:
        PeckerError: no model, no classifier of its classes, or a class that nobody names.
    """
    model = run if isinstance(run, ModelFolder) else ModelFolder.load(find_model(run))
    judge = load_classifier(classifier, model.class_names).to(device)
    name = model.figures.get("forget") if forget is None else forget
    if name is None:
        raise PeckerError(
            "attack: the model does not say which class it has forgotten; give --forget"
        )
    index = model.class_index(name)
    model.network.to(device).eval()
    asked = tuple(sweep(model, index, judge, images, seed))
    taught: tuple[Asked, ...] = ()
    if original is not None:
        before = ModelFolder.load(find_model(original))
        before.network.to(device).eval()
        taught = tuple(_taught(model, before, index, judge, images, seed))
    found = Attacked(model.class_names[index], asked, taught)
    if isinstance(run, Path) and holds_run(run):
        _write(run, found)
    return found


def _write(run: Path, found: Attacked) -> None:
    """attack.json, and the same in the run's report."""
    write_text(run / ATTACK_NAME, json.dumps(found.to_dict(), indent=2) + "\n")
    report, page = (run / name for name in REPORT_NAMES)
    if report.is_file() and isinstance(told := read_json(report), dict):
        told = {**told, "attack": found.to_dict()}
        write_text(report, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    if page.is_file():
        ways = Table("Every way of asking", found.rows(), found.columns)
        said = Sentence(f"Asked in other ways: {found.headline}.", bad=bool(found.open))
        add_attack(page, said, ways)


def _taught(
    model: ModelFolder,
    original: ModelFolder,
    forget: int,
    judge: Classifier,
    images: int,
    seed: int,
) -> Iterator[Asked]:
    """Both attacks, with images that the original draws."""
    shots = Sampler(_ORIGINAL_STEPS, seed + 1).sample(original, torch.full((SHOTS,), forget))
    assert shots is not None  # one process draws
    labels = torch.full((images,), forget)
    for kind in RATES:
        for steps, taught in attacked(model, forget, shots, kind, STEPS[kind], seed=seed):
            found = recognised(taught, _LOOK, labels, judge)
            words = f"{kind}, {steps} steps on {SHOTS} images"
            yield Asked(words, Share(int((found == forget).sum()), images))
