"""What attacks on an erased model found, beside a model that was trained without the class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, NonNegativeInt, PositiveInt

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.sweep import Asked
from pecker_fast.files import read_json, shown
from pecker_fast.methods.relearning import RATES, Attack
from pecker_fast.runs.reading import Schema, checked

__all__ = ["SHOTS", "STEPS", "Attacked", "retrained_figures", "words_of"]

RESISTS = 0.03
"""Share of images of the class up to which a way of asking counts as closed."""
STEPS: dict[Attack, tuple[int, ...]] = {
    "inversion": (10, 20, 40, 80),
    "relearning": (5, 10, 20, 40),
}
SHOTS = 20  # images of the class that an attack trains on


@dataclass(frozen=True)
class Attacked:
    """What came of all attacks on one model.

    Attributes:
        forget: the class, or that which the concept is.
        asked: by ways of asking.
        taught: by attacks that train, in the order of their steps.
        retrained: as `taught`, of a model that was trained without the class. Empty: unknown.
    """

    forget: str
    asked: tuple[Asked, ...]
    taught: tuple[Asked, ...] = ()
    retrained: tuple[Asked, ...] = ()

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
    def steps_to_half(self) -> dict[Attack, tuple[float | None, float | None]]:
        """Steps of each attack until half of the images show the class: here, and retrained."""
        if not self.taught:
            return {}
        both = self.taught, self.retrained
        return {kind: (_to_half(kind, both[0]), _to_half(kind, both[1])) for kind in RATES}

    @property
    def taught_sentence(self) -> str:
        """How soon it is learnt again; "" where nobody tried."""
        parts = []
        for kind, (here, retrained) in self.steps_to_half.items():
            beside = f", trained without it {_steps(kind, retrained)}" if self.retrained else ""
            parts.append(f"{kind} {_steps(kind, here)}{beside}")
        steps = "; ".join(parts)
        return steps and f"steps until half of the images show it again: {steps}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the rows."""
        return "", self.forget, "others kept", *(["trained without it"] if self.retrained else [])

    def rows(self) -> list[tuple[str, ...]]:
        """Each way in words, the share of images of the class, and of others that are kept."""
        every = (*self.asked, *self.taught)
        rows = [(e.way, str(e.found), "" if e.kept is None else str(e.kept)) for e in every]
        if not self.retrained:
            return list(rows)
        beside = [""] * len(self.asked) + [str(each.found) for each in self.retrained]
        return [(*row, last) for row, last in zip(rows, beside, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            "forget": self.forget,
            "headline": self.headline,
            "asked": [each.to_dict() for each in self.asked],
            "taught": [each.to_dict() for each in self.taught],
            "retrained": [each.to_dict() for each in self.retrained],
            "steps_to_half": {k: list(steps) for k, steps in self.steps_to_half.items()},
        }


class _Counted(Schema):
    model_config = ConfigDict(extra="ignore")

    count: NonNegativeInt
    of: PositiveInt


class _Way(Schema):
    model_config = ConfigDict(extra="ignore")

    way: str
    found: _Counted


class _File(Schema):
    """What `attack --json` prints, as far as it is read."""

    model_config = ConfigDict(extra="ignore")

    forget: str
    taught: list[_Way]


def retrained_figures(name: str, original: Path | None, file: Path | None) -> tuple[Asked, ...]:
    """How a model that was trained without the class learns it from the same original.

    Args:
        name: of the class.
        original: the model before; None: nothing is taught.
        file: what `attack --json` printed for such a model. None: `retrained.json` in the folder
            of the original, where there is one of this class.

    Raises:
        PeckerError: the file is damaged, of another class, or of other attacks.
    """
    if original is None:
        if file is not None:
            raise PeckerError("attack: --retrained needs --original, which draws what is taught")
        return ()
    if file is None:
        file = original / "retrained.json"
        if not file.is_file() or checked(_File, read_json(file), file).forget != name:
            return ()
    found = checked(_File, read_json(file), file)
    known = [words_of(kind, steps) for kind in RATES for steps in STEPS[kind]]
    if found.forget != name or [each.way for each in found.taught] != known:
        raise PeckerError(
            f"{file}: is of {shown(found.forget)}, taught in {len(found.taught)} ways; expected "
            f"{name} in the {len(known)} of this version: attack the retrained model again, with "
            "--original and --json"
        )
    return tuple(Asked(each.way, Share(each.found.count, each.found.of)) for each in found.taught)


def _to_half(kind: Attack, taught: tuple[Asked, ...]) -> float | None:
    """Steps until half of the images show the class, between those that were looked at."""
    if not taught:
        return None
    first = sum(len(STEPS[k]) for k in list(RATES)[: list(RATES).index(kind)])
    last_steps, last_share = 0, 0.0
    for steps, each in zip(STEPS[kind], taught[first:], strict=False):
        share = each.found.value
        if share >= 0.5:
            return last_steps + (steps - last_steps) * (0.5 - last_share) / (share - last_share)
        last_steps, last_share = steps, share
    return None


def _steps(kind: Attack, steps: float | None) -> str:
    return f"not in {STEPS[kind][-1]}" if steps is None else f"about {steps:.0f}"


def words_of(kind: Attack, steps: int) -> str:
    """An attack that trains, after so many steps."""
    return f"{kind}, {steps} steps on {SHOTS} images"
