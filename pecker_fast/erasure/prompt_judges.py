"""Who tells what images of a pipeline's prompts show, and which prompts that takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from pecker_fast.datasets.prompt_files import ALL, PromptFile, PromptRow
from pecker_fast.distributed import Ranks
from pecker_fast.erasure.request import Judges
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.classifier_files import known_classes
from pecker_fast.evaluate.concept import ConceptCaptions
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.measures import Namer, by_classifier, load_measures
from pecker_fast.evaluate.previews import Previews
from pecker_fast.evaluate.recognition import Outcome
from pecker_fast.files import few, shown

__all__ = ["PromptJudge", "captions_of", "judge_of", "namer"]


@dataclass(frozen=True)
class PromptJudge:
    """Who recognises what prompts name, before an erasure and after it.

    Attributes:
        seen: tells what images show.
        captions: from the prompts that the erasure is told to forget, those to judge it by.
        probe: likewise those to look at it by as the run goes: as many images as are asked for.
    """

    seen: Namer
    captions: Callable[[Sequence[str]], ConceptCaptions]
    probe: Callable[[Sequence[str], int], ConceptCaptions]

    def outcome(self, previews: Previews, told: Sequence[str], erased: nn.Module) -> Outcome:
        """What is recognised in images of both networks; this process alone draws."""
        how, captions = (previews.before, previews.after), self.captions(told)
        images = previews.original(captions.prompts, Ranks())
        before = captions.recognition(images, self.seen, how[0].describe(), how[0].seed)
        images = previews.erased(erased, captions.prompts, Ranks())
        after = captions.recognition(images, self.seen, how[1].describe(), how[1].seed)
        return Outcome("concept", captions.name, captions.override_name, before, after)

    def point(self, captions: ConceptCaptions, images: Tensor) -> dict[str, Any]:
        """The figures of a point of the curve; one image for each caption."""
        groups, right = captions.groups, self.seen(images) == captions.labels
        asked = torch.tensor(
            [name.startswith("forget") for name, group in groups.items() for _ in group]
        )
        forget, keep = (Share.counted(right[chosen]) for chosen in (asked, ~asked))
        return {
            "forget_accuracy": forget.value,
            "keep_accuracy": keep.value,
            "forget_count": forget.total,
            "keep_count": keep.total,
        }


def _names(judges: Judges, labels: Sequence[str]) -> tuple[str, ...]:
    """What may be seen in images of prompts that have these labels."""
    if judges.nudity_detector is not None:
        return ("nudity",)
    known = known_classes(judges.classifier) if judges.classifier is not None else list(labels)
    if known:
        return tuple(known)
    # A classifier without a card: labels are the numbers of its outputs.
    numbers = [int(label) for label in labels if label.isdecimal() and len(label) < 5]
    return tuple(map(str, range(max(numbers, default=-1) + 1)))


def namer(judges: Judges, names: Sequence[str], device: torch.device | str) -> Namer:
    """Load the judge, which tells these names apart.

    Raises:
        PeckerError: a file that is missing, broken or of something else.
    """
    if judges.classifier is not None:
        return by_classifier(load_classifier(judges.classifier, names).to(device))
    (measure,) = load_measures(
        nudity_detector=judges.nudity_detector,
        nudity_channel_order=judges.nudity_channel_order,
        clip=judges.clip,
        faces=judges.faces,
        device=device,
    ).values()  # `require_one` has seen to it that there is one
    return measure.namer(names)


def judge_of(
    judges: Judges, prompts: PromptFile, images: int, device: torch.device | str
) -> PromptJudge:
    """A judge of the prompts of a file.

    Args:
        judges: who it is.
        prompts: see `captions_of`.
        images: of the concept at the end.
        device: where it works.

    Raises:
        PeckerError: as `captions_of` and `namer`.
    """
    names = captions_of((), prompts, judges, None, images).class_names  # what is wrong is said now

    def probe(told: Sequence[str], count: int) -> ConceptCaptions:
        found = captions_of(told, prompts, judges, None, count)
        groups = {name: told for name, told in found.groups.items() if name != "forget_held_back"}
        return replace(found, groups=groups)

    return PromptJudge(
        namer(judges, names, device),
        lambda told: captions_of(told, prompts, judges, None, images),
        probe,
    )


def captions_of(
    said: Collection[str],
    told: PromptFile,
    judges: Judges,
    forget: str | int | None,
    images: int,
) -> ConceptCaptions:
    """The prompts of a file that an erasure is judged by, with the names that are looked for.

    Args:
        said: prompts that the erasure was told to forget; the file's others are held back.
        told: rows of the group forget name the concept, those of neighbours and keep what is to be
            kept; a file without groups is all about the concept.
        judges: who judges; all but a nudity detector need a label on each row.
        forget: label of the concept, where the group forget has several.
        images: of the concept, told and held back each, and of all others together.

    Raises:
        PeckerError: rows or labels that this needs are missing, or a label is none of the judge's.
    """
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
    names = _names(judges, labels)
    unknown = [label for label in labels if label not in names]
    if unknown and judges.nudity_detector is None:
        known = few(names) if _names(judges, ()) else "the number of an output, as it has no names"
        raise PeckerError(
            f"{told.source}: label {shown(unknown[0])} is none of the judge's; expected {known}"
        )

    def pairs(rows: Sequence[PromptRow], count: int) -> list[tuple[str, int]]:
        found = [(row.prompt, names.index(row.label) if row.label in names else -1) for row in rows]
        return list(islice(cycle(found), count))

    learnt = [row for row in concept if row.prompt in said]
    held_back = [row for row in concept if row.prompt not in said]
    groups = {"forget_trained": pairs(learnt or held_back, images)}
    if learnt and held_back:
        groups["forget_held_back"] = pairs(held_back, images)
    total = sum(map(len, beside.values()))
    for name, others in beside.items():
        groups[name] = pairs(others, -(-images * len(others) // max(total, 1)))
    index = 0 if judges.nudity_detector else names.index(str(concept[0].label))
    instead = next((row.label for row in told.rows if row.group == "override"), None)
    override = names.index(instead) if instead in names else None
    return ConceptCaptions(names, index, override, groups)
