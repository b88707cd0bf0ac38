"""The report on several classes that were forgotten in one run: figures of each, no pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pecker_fast.distributed import Ranks
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.page import Table, Terms
from pecker_fast.evaluate.recognition import Outcome, Recognition
from pecker_fast.evaluate.report import Report
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
    of_kept = torch.isin(labels, torch.tensor(kept))

    def before(kind: str, indices: Sequence[int]) -> Recognition:
        share = sum(teacher.class_accuracy[index] for index in indices) / len(indices)
        return Recognition({kind: Share.of(share, teacher.per_class * len(indices))})

    def after(kind: str, chosen: Tensor, forget: int) -> Recognition:
        groups = {kind: torch.ones_like(seen[chosen], dtype=torch.bool)}
        return Recognition.of(seen[chosen], labels[chosen], names, forget, groups)

    outcomes = [
        Outcome(
            "class",
            names[index],
            None if instead is None else names[instead],
            before("forget", [index]),
            after("forget", labels == index, index),
        )
        for index, instead in pairs
    ]
    rest = Outcome(
        "class", "", None, before("keep", kept), after("keep", of_kept, -1),
        others=(f"The other {len(kept)} classes", True),
    )  # fmt: skip
    verdicts = [outcome.gone for outcome in outcomes]
    rows = [row for outcome in (*outcomes, rest) for row in outcome.rows()]
    rows.append(("Network evaluations per image", str(teacher.steps), str(sampler.steps)))
    return Report(
        run=erasure.facts,
        headline=" ".join(outcome.headline(outcome.name) for outcome in outcomes),
        gone=False if False in verdicts else None if None in verdicts else True,
        kept_sentence=rest.kept_sentence(),
        kept=rest.kept,
        figures={
            "classes": list(names),
            "forgotten": [
                {
                    "forget": outcome.name,
                    "override": outcome.override,
                    **outcome.verdicts(),
                    "before": outcome.before.to_dict(outcome.override),
                    "after": outcome.after.to_dict(outcome.override),
                }
                for outcome in outcomes
            ],
            "rest": {"before": rest.before.to_dict(None), "after": rest.after.to_dict(None)},
        },
        tables=[Table("Figures", rows, rest.columns)],
        conditions=[
            *erasure.facts.conditions(),
            ("Original model's images", f"{teacher.steps} DDIM steps, seed {teacher.seed}"),
            ("Erased model's images", f"{sampler.describe()}, seed {sampler.seed}"),
        ],
        terms=Terms(
            "class", {"judged": True, "steps": sampler.steps, "evaluations": teacher.steps}
        ),
    )
