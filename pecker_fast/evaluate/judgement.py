"""All figures of one set of images with all that they depend on: what `evaluate` prints and writes.

The JSON file is what `pecker-fast compare` reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.fidelity import FidelityFigures
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.intervals import percent
from pecker_fast.files import read_json, shown
from pecker_fast.runs.reading import Schema, checked

__all__ = ["Judgement", "Written"]

FORMAT = 1  # of the JSON file

PUBLISHED_PER_CLASS = 5_000
"""Images of each class, the forgotten one included, behind SFD's figures. SA, SalUn and EraseDiff
take 500 of the forgotten class."""

_LARGEST = 1e30  # of a figure that is read

FEATURES = 2_048  # of Inception: with fewer real images their covariance is singular


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was judged, by what, and what came out."""

    source: str  # the model folder, or where the images lie
    from_files: bool  # the images lie there; else a model drew them
    class_names: Sequence[str]  # by index; empty where the images have no classes
    forget: int | None  # index of the forgotten class; None where there is none
    # How the images were drawn (see `Sampler.settings`); of images from elsewhere what is written
    # beside them, which may be nothing.
    drawn: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""  # hash of the model's weights; "" where images were given
    # How the model came about, as far as its folder says: kind, iterations and so on.
    trained: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None  # the classifier's figures, or None without a classifier
    # Figures against real images, of the kept classes, or None without them.
    fidelity: FidelityFigures | None
    machine: Mapping[str, Any]  # see `machine_facts`
    processes: int = 1  # that drew the images together
    versions: Mapping[str, str]  # see `versions`

    def warnings(self) -> list[str]:
        """In what the figures fall short of the published protocol; one sentence each."""
        found = []
        if self.evaluation is not None and self.evaluation.forget_count < PUBLISHED_PER_CLASS:
            found.append(
                f"UA, P(forgotten class) and entropy rest on {self.evaluation.forget_count:,} "
                f"images of the forgotten class; published ones on {PUBLISHED_PER_CLASS:,} (SFD) "
                "or 500 (SA, SalUn, EraseDiff)"
            )
        if self.fidelity is None:
            return found
        count, real = self.fidelity.count, self.fidelity.real_count
        kept = len(self.class_names) - (self.forget is not None)
        published = kept * PUBLISHED_PER_CLASS or 50_000
        if count < published:
            found.append(
                f"FID and its like rest on {count:,} generated images; published ones on "
                f"{published:,}. FID grows as images become fewer: compare equal counts only"
            )
        if count <= FEATURES:
            found.append(
                f"{count:,} generated images do not span Inception's {FEATURES:,} features: this "
                "FID says more of their number than of the images. KID does not grow as images "
                "become fewer"
            )
        if real < FEATURES:
            found.append(
                f"{real:,} real images do not span Inception's {FEATURES:,} features; published "
                "figures are against all training images of the kept classes"
            )
        if not self.fidelity.weights_published:
            found.append(
                f"{self.fidelity.weights} is not the file of Inception weights that published "
                "figures rest on: no figure taken with it compares with those"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The JSON file: the classifier's figures at the top, plain types throughout."""
        return {
            "format": FORMAT,
            "images" if self.from_files else "model": self.source,
            "classes": list(self.class_names),
            "forget": self.forget,
            "forget_class": self.name(self.forget),
            **({} if self.evaluation is None else self.evaluation.to_dict()),
            "fidelity": None if self.fidelity is None else self.fidelity.to_dict(),
            "drawn": dict(self.drawn),
            "pixels": "uint8",
            "network": self.network,
            "trained": dict(self.trained),
            "warnings": self.warnings(),
            "machine": dict(self.machine),
            "processes": self.processes,
            "versions": dict(self.versions),
        }

    @classmethod
    def read(cls, path: Path) -> Judgement:
        """Read a file with what `to_dict` gave.

        Raises:
            PeckerError: not such a file, or of a later format.
        """
        content = read_json(path)
        values = content if isinstance(content, dict) else {}
        if values.get("format") != FORMAT or "fidelity" not in values:
            raise PeckerError(
                f"{path}: not figures of `pecker-fast evaluate --json` in format {FORMAT} (format "
                f"{shown(values.get('format'))})"
            )
        from_files = "images" in values
        known = {
            **values,
            "source": values.get("images" if from_files else "model"),
            "from_files": from_files,
            "class_names": values.get("classes"),
            "evaluation": values if "forget_accuracy" in values else None,
        }
        found = checked(_File, {"figures": known}, path).figures
        override = None if found.evaluation is None else found.evaluation.override
        for index in (found.forget, override):
            if index is not None and not 0 <= index < len(found.class_names):
                raise PeckerError(
                    f"{path}: class {index} is none of its {len(found.class_names)} classes; "
                    "evaluate again"
                )
        return found

    def name(self, index: int | None) -> str | None:
        """The name of a class; None of None."""
        return None if index is None else self.class_names[index]

    def lines(self) -> list[str]:
        """The figures for a terminal."""
        found, rows = self.evaluation, list[tuple[str, str]]()
        if found is not None:
            both = zip(found.class_accuracy, found.class_shares, strict=True)
            for index, (accuracy, share) in enumerate(both):
                mark = "  (forget)" if index == self.forget else ""
                words = "-" if accuracy is None else percent(accuracy)
                words = words if share is None else share.counts
                rows.append((self.class_names[index], f"{words}{mark}"))
            instead = found.recognition(self.class_names).seen_as
            if seen := sorted(filter(instead.get, instead), key=lambda name: -instead[name]):
                words = ", ".join(f"{name} {instead[name]:,}" for name in seen)
                rows.append(("forgotten, seen as", words))
        override = None if found is None else self.name(found.override)
        for part in (found, self.fidelity):
            rows += [
                (title, words.format(part, value, override=override))
                for figure, title, words in _LINES
                if (value := getattr(part, figure, None)) is not None
            ]
        width = max(20, *(len(name) for name, _ in rows))
        return [f"{name:{width}} {value}" for name, value in rows] + [
            f"note: {warning}" for warning in self.warnings()
        ]


class Written(Schema):
    """What a command of this package wrote, as far as it is read: there may be other entries."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Any:
        """Check plain types as a JSON text: in Python, a list and an object are exactly that."""
        bounded = json.loads(json.dumps(obj), parse_float=_bounded)
        return cls.model_validate_json(json.dumps(bounded), **options)


def _bounded(digits: str) -> float:
    """A figure; infinity, which is refused, for one that nothing measures and no chart can show."""
    value = float(digits)
    return value if abs(value) <= _LARGEST else math.inf


class _File(Written):
    figures: Judgement


_LINES = (  # name of a figure, its title, and the figure in words
    ("forget_accuracy", "forget accuracy", "{0.forgotten.counts}"),
    ("unlearning_accuracy", "UA (1 - forget)", "{0.unlearned}"),
    ("override_accuracy", "override accuracy", "{0.overridden.counts} are {override}"),
    ("keep_accuracy", "keep accuracy", "{0.kept.counts}"),
    ("forget_probability", "P(forgotten class)", "{1:.4f}"),
    ("forget_entropy", "entropy, nats", "{1:.4f}"),
    ("frechet", "Fréchet, kept", "{1:.3f}"),
    ("frechet_interval", "  with 95 %", "{1.low:.3f} to {1.high:.3f}"),
    ("frechet_early", "  in earlier layer", "{1:.4g}"),
    ("frechet_early_interval", "  with 95 %", "{1.low:.4g} to {1.high:.4g}"),
    ("frechet_all", "Fréchet, all", "{1:.3f}"),
    ("second", "second judge", "{1.judge}"),
    ("second", "  forget accuracy", "{1.forgotten.counts}"),
    ("second", "  keep accuracy", "{1.kept.counts}"),
    ("fid", "FID, kept", "{1:.3f} ({0.count:,} generated, {0.real_count:,} real)"),
    ("fid_interval", "  with 95 %", "{1.low:.3f} to {1.high:.3f}"),
    ("sfid", "sFID, kept", "{1:.3f}"),
    ("kid", "KID, kept", "{1:.5f}"),
    ("kid_spread", "  of its subsets", "{1}"),
    (
        "inception_score",
        "inception score",
        "{1:.3f} (sd {0.inception_score_std:.3f} over its splits)",
    ),
    ("precision", "precision, kept", "{1:.4f}"),
    ("recall", "recall, kept", "{1:.4f}"),
)
