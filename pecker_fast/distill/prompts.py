"""Which prompts each network is told: prompts to keep, the concept to forget and its override.

All prompts are encoded once, before the run: a text encoder that runs for every network call, as in
the published loop, would run 16 times an iteration.
"""

from __future__ import annotations

import itertools
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pecker_fast.distill.conditions import Conditions
from pecker_fast.distill.networks import NoisePredictor, Predictors, guided_by_sample
from pecker_fast.distill.text_config import ConceptSection, TextSection
from pecker_fast.errors import PeckerError
from pecker_fast.files import read_text
from pecker_fast.runs.randomness import IterationRandom

if TYPE_CHECKING:
    from pecker_fast.models.pipeline import PipelineFolder

__all__ = ["PromptPair", "TextConditions", "fill_template", "prompt_pairs", "read_prompts"]

_MOST_FILLED = 100_000  # prompts of a template

Encode = Callable[[Sequence[str]], Tensor]
"""Prompts -> (P, L, D) embeddings on the CPU."""


class PromptPair(NamedTuple):
    """What is forgotten, and what the teacher is told in its place."""

    forget: str
    override: str


def read_prompts(source: Sequence[str] | str, what: str) -> list[str]:
    """A list of prompts, or the lines of a text file.

    Args:
        source: the prompts, or the file's path. Empty lines of a file do not count.
        what: the setting they come from, for messages.

    Raises:
        PeckerError: the file cannot be read, is not UTF-8, or there is no prompt.
    """
    if isinstance(source, str):
        path = Path(source)
        try:
            lines = read_text(path).removeprefix("\ufeff").splitlines()
        except PeckerError as error:
            raise PeckerError(f"{what}: {error}") from None
        prompts = [line.strip() for line in lines if line.strip()]
        what = f"{what}: {path}"
    else:
        prompts = list(source)
    if not prompts:
        raise PeckerError(f"{what} has no prompt")
    return prompts


def prompt_pairs(section: ConceptSection, what: str = "text.concepts") -> list[PromptPair]:
    """Every template with every word for the concept and every value of its placeholders.

    Raises:
        PeckerError: no concept, a template without it, or with a placeholder that has no value.
    """
    concepts = [section.concept] if isinstance(section.concept, str) else list(section.concept)
    if not concepts or not all(word.strip() for word in concepts):
        raise PeckerError(f"{what}: the concept is empty; name what is to be forgotten")
    pairs: dict[PromptPair, None] = {}
    for template in read_prompts(section.prompts, f"{what}.prompts"):
        if "concept" not in _placeholders(template, what):
            # A plain prompt that names the concept, as in SFD's lists.
            override = template
            for name in filter(None, concepts):
                named = re.compile(re.escape(name), re.IGNORECASE)
                override = named.sub(lambda _: section.override, override)
            if override == template:
                raise PeckerError(
                    f"{what}: the template {template!r} has no {{concept}} and does not name it, "
                    "so it forgets nothing"
                )
            pairs[PromptPair(template, " ".join(override.split()))] = None
            continue
        for word in concepts:
            filled = (
                fill_template(template, {**section.fill, "concept": (value,)}, what)
                for value in (word, section.override)
            )
            pairs.update(dict.fromkeys(map(PromptPair, *filled)))
    return list(pairs)


def fill_template(template: str, values: Mapping[str, Sequence[str]], what: str) -> list[str]:
    """The template with every combination of its placeholders' values, single spaces between.

    Raises:
        PeckerError: a placeholder without values or with more than a name, braces that do not
            match, or more than a hundred thousand combinations.
    """
    names = sorted(_placeholders(template, what))
    if missing := [name for name in names if not values.get(name)]:
        raise PeckerError(
            f"{what}: the template {template!r} has a placeholder {{{missing[0]}}} without "
            f"values; give them in fill.{missing[0]}"
        )
    count = math.prod(len(values[name]) for name in names)
    if count > _MOST_FILLED:
        raise PeckerError(
            f"{what}: the template {template!r} makes {count:,} prompts, at most {_MOST_FILLED:,} "
            "are taken; give its placeholders fewer values"
        )
    filled = []
    for chosen in itertools.product(*(values[name] for name in names)):
        text = template.format(**dict(zip(names, chosen, strict=True)))
        filled.append(" ".join(text.split()))
    return filled


def _placeholders(template: str, what: str) -> set[str]:
    try:
        fields = [field[1:] for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise PeckerError(f"{what}: the template {template!r} is wrong: {error}") from None
    for name, style, conversion in fields:
        if style or conversion or not str(name).isidentifier():
            raise PeckerError(
                f"{what}: the template {template!r} has a placeholder that is more than a name; "
                "write {concept}, or the name of an entry of fill in such braces"
            )
    return {str(name) for name, _, _ in fields}


class TextConditions:
    """Draws the prompts of a text-to-image model that must forget concepts.

    Attributes:
        remain: the prompts to keep.
        concepts: the pairs of each concept.
    """

    def __init__(self, section: TextSection, encode: Encode, seed: int = 0) -> None:
        """Expand the templates and encode every prompt once.

        The seed is of the choice where there are more prompts to keep than `max_prompts`.

        Raises:
            PeckerError: a file or template that cannot be used, or a prompt whose override means
                the same to the text encoder.
        """
        remain = read_prompts(section.remain, "text.remain")
        if not isinstance(section.remain, str):
            filled = (fill_template(prompt, section.fill, "text.remain") for prompt in remain)
            remain = list(dict.fromkeys(itertools.chain.from_iterable(filled)))
        if len(remain) > section.max_prompts:
            order = torch.randperm(len(remain), generator=torch.Generator().manual_seed(seed))
            remain = [remain[i] for i in order[: section.max_prompts].tolist()]
        self.remain = remain
        self.concepts = [
            prompt_pairs(concept, f"text.concepts[{i}]")
            for i, concept in enumerate(section.concepts)
        ]
        self._dropout = section.dropout
        pairs = [pair for concept in self.concepts for pair in concept]
        # Per term: what guidance leads away from in each place.
        negative: list[dict[str, str]] = [
            term.model_dump() for term in (section.negative.remain, section.negative.forget)
        ]
        self._rows: dict[str, int] = {}
        told = (prompt for term in negative for prompt in term.values())
        for prompt in ("", *remain, *itertools.chain.from_iterable(pairs), *told):
            self._rows.setdefault(prompt, len(self._rows))
        self._table = encode(self.prompts).detach().cpu()
        self._scales: dict[str, float] = section.guidance.model_dump()
        self._negative = {
            place: self._indices(term[place] for term in negative) for place in self._scales
        }
        self._remain = self._indices(remain)
        # (P, 2) of each concept: what is forgotten, and what takes its place.
        self._pairs = [torch.stack([self._indices(pair) for pair in c]) for c in self.concepts]
        self._weights = torch.tensor([concept.weight for concept in section.concepts])
        self._refuse_what_means_the_same(pairs)

    @classmethod
    def of_pipeline(
        cls,
        pipeline: PipelineFolder,
        section: TextSection | None,
        seed: int,
        device: torch.device | None = None,
    ) -> TextConditions:
        """The same by a pipeline's own text encoders, on `device` (None = where its network is).

        Raises:
            PeckerError: No section, or as above.
        """
        if section is None:
            raise PeckerError("a text-to-image model needs the section `text` in its configuration")
        place = next(pipeline.network.parameters()).device if device is None else device
        return cls(section, lambda prompts: pipeline.texts.encode(prompts, place), seed)

    def about(self, pipeline: PipelineFolder) -> dict[str, Any]:
        """What a run depends on besides its configuration and its networks, by name."""
        # Not the embeddings: their last bits depend on the device.
        texts = pipeline.texts
        return {
            "prompts": [self.prompts, texts.tokens(self.prompts)],
            "text encoder": [encoder.state_dict() for encoder in texts.encoders],
            "prediction type": pipeline.prediction_type,
        }

    def cut_off(self, pipeline: PipelineFolder) -> list[str]:
        """What the encoders do not read, by prompt: the first three, and how many more."""
        lost = pipeline.texts.cut(self.prompts)
        named = [f"{prompt!r}: {end!r} is cut off" for prompt, end in list(lost.items())[:3]]
        if len(lost) > len(named):
            named.append(f"so are {len(lost) - len(named)} more")
        return [f"the text encoder does not read the end of {'; '.join(named)}"] if named else []

    @property
    def prompts(self) -> list[str]:
        """Every prompt that a network may be told."""
        return list(self._rows)

    def draw(self, batch_size: int, random: IterationRandom) -> Conditions:
        """As `DrawsConditions.draw`: embeddings, (2B, L, D); (B, L, D) where nothing is forgotten.

        Where there is guidance (2B, K, L, D), with those of the negative prompts. A prompt that is
        dropped to "" is dropped before the pseudo-score phase draws its images, as published; it
        is what generator and teacher are told at every time step then, which guidance needs.
        """
        host = random.host
        remain = self._remain[torch.randint(len(self._remain), (batch_size,), generator=host)]
        weight = None
        if self.concepts:
            which, forget, override = self._draw_concepts(batch_size, host)
            student, redirected = torch.cat([remain, forget]), torch.cat([remain, override])
            if bool((self._weights != 1).any()):
                weight = torch.cat([torch.ones(batch_size), self._weights[which]])
                weight = weight.to(random.device, non_blocking=True)
        else:
            student = redirected = remain
        dropped = torch.rand(len(student), generator=host) < self._dropout
        empty = self._rows[""]
        sampled = student.masked_fill(dropped, empty)
        away = {
            place: pair.repeat_interleave(batch_size)[: len(student)]
            for place, pair in self._negative.items()
        }
        score = [student, away["kappa2"]] + ([] if self._one_psi else [away["kappa3"]])
        found = {
            "student": student,
            "teacher": torch.stack([redirected, away["kappa4"]], 1),
            "score": torch.stack(score, 1),
            "of_samples": sampled,
            "training": torch.stack([sampled, away["kappa1"].masked_fill(dropped, empty)], 1),
            "redirected": redirected,
            "at_every_step": redirected.masked_fill(dropped, empty),
        }
        return Conditions(
            **{name: self._embeddings(rows, random.device) for name, rows in found.items()},
            weight=weight,
        )

    def _draw_concepts(
        self, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which concepts, what is forgotten of each, and what takes its place; (count,) each."""
        which = torch.randint(len(self.concepts), (count,), generator=generator)
        # One number per sample, whatever concept it is of: a fraction of that concept's pairs.
        fraction = torch.rand(count, generator=generator, dtype=torch.float64)
        chosen = zip((self._pairs[c] for c in which), fraction, strict=True)
        forget, override = torch.stack([pairs[int(f * len(pairs))] for pairs, f in chosen]).unbind(
            1
        )
        return which, forget, override

    @property
    def _one_psi(self) -> bool:
        """The pseudo-score is called alike in both places of the generator loss."""
        return self._scales["kappa2"] == self._scales["kappa3"] and torch.equal(
            self._negative["kappa2"], self._negative["kappa3"]
        )

    def predictors(self, predict: NoisePredictor) -> Predictors:
        """`predict` with the guidance of each place; the generator has none."""
        scales = self._scales
        return Predictors(
            generator=predict,
            training=guided_by_sample(predict, scales["kappa1"]),
            difference=guided_by_sample(predict, scales["kappa2"]),
            residual=None
            if self._one_psi
            else guided_by_sample(predict, scales["kappa3"], negative=2),
            teacher=guided_by_sample(predict, scales["kappa4"]),
        )

    def embeddings(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """(P, L, D) of prompts that belong to the run."""
        return self._embeddings(self._indices(prompts), device)

    def _embeddings(self, rows: Tensor, device: torch.device) -> Tensor:
        chosen = self._table[rows]
        if device.type != "cuda":
            return chosen.to(device)
        return chosen.pin_memory().to(device, non_blocking=True)

    def _indices(self, prompts: Iterable[str]) -> Tensor:
        return torch.tensor([self._rows[prompt] for prompt in prompts])

    def _refuse_what_means_the_same(self, pairs: Sequence[PromptPair]) -> None:
        for pair in pairs:
            if torch.equal(*self._table[self._indices(pair)]):
                raise PeckerError(
                    f"forgetting {pair.forget!r} in favour of {pair.override!r} changes nothing: "
                    "the text encoder sees no difference between them; choose another override"
                )
