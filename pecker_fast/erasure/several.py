"""The report on several classes that were forgotten in one run: figures of each, no pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from pecker_fast.distributed import Ranks
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.page import Table
from pecker_fast.evaluate.recognition import Outcome, Recognition
from pecker_fast.evaluate.report import Report
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.models import ModelFolder

if TYPE_CHECKING:
    from pecker_fast.erasure.erased import Erased

__all__ = ["Pairs", "report_on_several"]

Pairs: TypeAlias = Sequence[tuple[int, int | None]]
"""Classes to forget, and the class in the place of each, or None; by index."""


def report_on_several(
    erased: Erased,
    original: ModelFolder,
    pairs: Pairs,
    judge: Judge,
    sampler: Sampler,
    ranks: Ranks,
) -> Report | None:
    """Draw images of every class and say of each that was forgotten whether it is gone.

    Args:
        erased: the run.
        original: the model before.
        pairs: the classes.
        judge: with a classifier.
        sampler: how images of the erased model are drawn.
        ranks: the processes that draw them.

    Returns:
        The report; None on all processes but the first.
    """
    names = original.class_names
    teacher = judge.of_teacher(original, sampler.seed, ranks)
    labels = balanced_labels(len(names), judge.per_class)
    images = sampler.pixels(erased.model, labels, "erased model", ranks=ranks)
    if teacher is None or images is None:
        return None
    assert judge.classifier is not None
    predicted = classify(judge.classifier, images, progress="judging")[0].argmax(1)
    forgotten = [index for index, _ in pairs]
    keep = ~torch.isin(labels, torch.tensor(forgotten))
    found = []
    for index, instead in pairs:
        before = teacher.recognition(names, index, forgotten)
        groups = {"forget": labels == index, "keep": keep}
        after = Recognition.of(predicted, labels, names, index, groups)
        kept = {name: after.classes[name] for name in before.classes}
        real = judge.real_figures
        outcome = Outcome(
            "class",
            names[index],
            None if instead is None else names[instead],
            before,
            replace(after, classes=kept),
            None if real is None else real.recognition(names, index, forgotten),
            others=(f"The other {len(names) - len(pairs)} classes", True),
        )
        found.append(outcome)
    first, verdicts = found[0], [outcome.gone for outcome in found]
    rows = [row for outcome in found for row in outcome.rows() if row != first.rows()[-1]]
    keep_before, keep_after = first.before["keep"], first.after["keep"]
    assert keep_before is not None and keep_after is not None  # every class has images
    return Report(
        run=erased.facts,
        headline=" ".join(outcome.headline(outcome.name) for outcome in found),
        gone=False if False in verdicts else all(verdicts) or None,
        kept_sentence=first.kept_sentence(),
        kept=first.kept,
        figures={
            "classes": list(names),
            "forgotten": [_figures(outcome) for outcome in found],
            "keep_accuracy_teacher": keep_before.value,
            "keep_accuracy_after": keep_after.value,
            "keep_interval_after": list(keep_after.interval),
        },
        tables=[
            Table("Figures", [*rows, first.rows()[-1]], first.columns),
            Table("Classes that are to be kept", first.class_rows(), first.columns),
        ],
        conditions=[
            *erased.facts.conditions(),
            ("Network evaluations per image", f"{teacher.steps} before, {sampler.steps} after"),
            ("Original model's images", f"{teacher.steps} DDIM steps, seed {teacher.seed}"),
            ("Erased model's images", f"{sampler.describe()}, seed {sampler.seed}"),
        ],
    )


def _figures(outcome: Outcome) -> dict[str, Any]:
    """What report.json says of one class, in plain types."""
    before, after = outcome.before["forget"], outcome.after["forget"]
    assert before is not None and after is not None
    replaced = outcome.after.taken_for(outcome.override)
    return {
        "forget": outcome.name,
        "override": outcome.override,
        "forget_accuracy_before": before.value,
        "forget_accuracy_after": after.value,
        "forget_interval_after": list(after.interval),
        "override_accuracy_after": None if replaced is None else replaced.value,
        "count": after.total,
        "gone": outcome.gone,
    }
