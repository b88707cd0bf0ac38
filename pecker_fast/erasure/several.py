"""The report on several classes that were forgotten in one run: figures of each, no pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pecker_fast.distributed import Ranks
from pecker_fast.evaluate.forgetting import Hits, classify, percent
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.page import Table, Terms
from pecker_fast.evaluate.report import GONE, KEPT, Report, kept_sentence
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.models import ModelFolder

if TYPE_CHECKING:
    from pecker_fast.erasure.run import Erasure

__all__ = ["Pairs", "report_on_several"]

Pairs: TypeAlias = Sequence[tuple[int, int | None]]
"""Classes to forget, and the class in the place of each, or None; by index."""


def report_on_several(
    erasure: Erasure[ModelFolder],
    original: ModelFolder,
    pairs: Pairs,
    judge: Judge,
    sampler: Sampler,
    ranks: Ranks,
) -> Report | None:
    """Draw images of every class and say of each that was forgotten whether it is gone.

    Args:
        erasure: the run.
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
    images = sampler.pixels(erasure.model, labels, "erased model", ranks=ranks)
    if teacher is None or images is None:
        return None
    assert judge.classifier is not None
    seen = classify(judge.classifier, images, progress="judging")[0].argmax(1)
    gone = {index for index, _ in pairs}
    kept = [index for index in range(len(names)) if index not in gone]
    before = sum(teacher.class_accuracy[index] for index in kept) / len(kept)
    right = sum((Hits.of(seen[labels == index] == index) for index in kept), Hits(0, 0))
    rows, figures, left = [], list[dict[str, Any]](), list[str]()
    for index, instead in pairs:
        asked = seen[labels == index]
        found = Hits.of(asked == index)
        replaced = None if instead is None else Hits.of(asked == instead)
        was = teacher.forget_accuracy(index)
        rows.append((f"{names[index]}: recognised as {names[index]}", percent(was), str(found)))
        if replaced is not None and instead is not None:
            rows.append((f"{names[index]}: recognised as {names[instead]}", "", str(replaced)))
        if found.hits > GONE * found.count:
            left.append(names[index])
        figures.append(
            {
                "forget": names[index],
                "override": None if instead is None else names[instead],
                "forget_accuracy_before": was,
                "forget_accuracy_after": found.share,
                "override_accuracy_after": None if replaced is None else replaced.share,
                "count": found.count,
            }
        )
    asked_for = "images recognised as the class asked for"
    rows.append((f"Other classes: {asked_for}", percent(before), str(right)))
    rows.append(("Network evaluations per image", str(teacher.steps), str(sampler.steps)))
    listed = ", ".join(figure["forget"] for figure in figures)
    headline = f"{listed}: all are gone." if not left else f"Not gone: {', '.join(left)}."
    is_kept = right.hits >= (before - KEPT) * right.count
    return Report(
        run=erasure.facts,
        headline=headline,
        gone=not left,
        kept_sentence=kept_sentence(
            f"The other {len(kept)} classes {'are kept' if is_kept else 'have suffered'}",
            f"{right} of {right.count:,}",
            "images are recognised as the class asked for",
            percent(before),
        ),
        kept=is_kept,
        figures={
            "classes": list(names),
            "forgotten": figures,
            "keep_accuracy_teacher": before,
            "keep_accuracy_after": right.share,
        },
        tables=[Table("Figures", rows)],
        conditions=[
            *erasure.facts.conditions(),
            ("Original model's images", f"{teacher.steps} DDIM steps, seed {teacher.seed}"),
            ("Erased model's images", f"{sampler.describe()}, seed {sampler.seed}"),
        ],
        terms=Terms(
            "class", {"judged": True, "steps": sampler.steps, "evaluations": teacher.steps}
        ),
    )
