"""The part of a configuration that is about prompts: what to forget and keep, and guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, NonNegativeFloat

from pecker_fast.errors import PeckerError
from pecker_fast.runs.settings import Section

__all__ = ["ConceptSection", "GuidanceSection", "NegativeSection", "TextSection", "name_concepts"]


class ConceptSection(Section):
    """One concept to forget, and what takes its place.

    Prompts are templates: `{concept}` stands for the concept in what generator and pseudo-score are
    told, and for its override in what the teacher is told. Every other `{placeholder}` stands for
    each of its values in turn.
    """

    prompts: tuple[str, ...] | str  # Templates, or a text file with one a line.
    concept: tuple[str, ...] | str  # What is forgotten; several words for it are taken in turn.
    override: str  # What takes its place. "" = nothing: the rest of the prompt.
    # Values of the other placeholders.
    fill: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    weight: NonNegativeFloat = 1.0  # Of this concept in the forget term.


class GuidanceSection(Section):
    """Scales of classifier-free guidance in the four places of the method; 1 = none."""

    kappa1: float = 4.5  # The pseudo-score while it learns.
    kappa2: float = 4.5  # The pseudo-score in the difference of the scores.
    kappa3: float = 4.5  # The pseudo-score in the residual. As kappa2, or it costs a pass more.
    kappa4: float = 4.5  # The teacher.


class PlacesSection(Section):
    """What guidance leads away from in each place; "" = no prompt."""

    kappa1: str = ""
    kappa2: str = ""
    kappa3: str = ""
    kappa4: str = ""


class NegativeSection(Section):
    """What guidance leads away from, in each term. SFD: in the forget term only."""

    remain: PlacesSection = PlacesSection()
    forget: PlacesSection = PlacesSection()


class TextSection(Section):
    """A run on a text-to-image model. Takes the place of `forget` and `override`."""

    remain: tuple[str, ...] | str  # Prompts to keep (templates), or a text file with one a line.
    # Values of their placeholders; every combination.
    fill: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    concepts: tuple[ConceptSection, ...]  # [] = none: the model is only distilled into one step.
    dropout: float = Field(0.1, ge=0, lt=1)  # Share of "" told to the pseudo-score as it learns.
    guidance: GuidanceSection = GuidanceSection()
    negative: NegativeSection = NegativeSection()
    max_prompts: int = Field(20_000, gt=0)  # Prompts to keep beyond these: a random choice.


def name_concepts(
    text: dict[str, Any], names: Sequence[str], overrides: Sequence[str]
) -> dict[str, Any]:
    """Fill in the concepts that a recipe leaves open; several names make several concepts.

    Args:
        text: the section `text` of a recipe, before it is checked.
        names: what is to be forgotten.
        overrides: what takes the place of each.

    Returns:
        The section with every concept named.

    Raises:
        PeckerError: a name that is missing or has no use, or not one override for each.
    """
    concepts: list[dict[str, Any]] = list(text.get("concepts", []))
    unnamed = [concept for concept in concepts if "concept" not in concept]
    if not unnamed:
        if names or overrides:
            raise PeckerError("this recipe names its concepts itself: leave out --name, --override")
        return text
    if not names:
        raise PeckerError("this recipe needs --name, what is to be forgotten")
    if len(overrides) != len(names):
        raise PeckerError(
            f"{len(names)} --name need as many --override, what takes their place; got "
            f"{len(overrides)}"
        )
    named = [concept for concept in concepts if "concept" in concept]
    named += [
        {**concept, "concept": name, "override": override}
        for concept in unnamed
        for name, override in zip(names, overrides, strict=True)
    ]
    return {**text, "concepts": named}
