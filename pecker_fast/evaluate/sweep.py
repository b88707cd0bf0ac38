"""What forgot a class or a concept, asked for it in every way that a sampler can ask."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.evaluate.classifier import Classifier
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.concept import ConceptCaptions
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.measures import Namer
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models.texts import Texts

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder
    from pecker_fast.models.pipeline import PipelineFolder

__all__ = ["Asked", "ClassSubject", "PromptSubject", "Subject", "Way", "class_rows", "ways"]

DDIM_STEPS = (4, 10, 20, 50)
FEW = DDIM_STEPS[1]
ONE_STEP_SIGMAS = (1.0, 1.5, 4.0, 8.0)  # noise-to-signal ratios beside the model's own, about 2.5
CLASS_SCALES = {3.0: "guidance 2"}  # w = 2 in (1 + w) eps_c - w eps_null
PROMPT_SCALES = {1.0: "no guidance", 7.5: "guidance 7.5"}
BLENDS = (0.25, 0.5)


@dataclass(frozen=True)
class Way:
    """One way of asking."""

    words: str
    steps: int = 1  # of DDIM; 1 is the generator's own
    t_init: int | None = None  # where one step starts; None: where the model's own does
    guidance: float = 1.0  # scale of the classifier-free kind; 1 is none
    ddpm: bool = False  # DDPM's steps
    blend: float = 0.0  # share of others in what the network is told
    held_back: bool = False  # by captions that neither the pipeline nor the erasure was told


@dataclass(frozen=True)
class Asked:
    """What came of one way of asking.

    Attributes:
        way: in words.
        found: images that the classifier calls what was forgotten, of those asked for it.
        kept: images of other classes that it calls what was asked for; None: none were drawn.
    """

    way: str
    found: Share
    kept: Share | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        entry: dict[str, Any] = {"way": self.way}
        for name, share in (("found", self.found), ("kept", self.kept)):
            if share is not None:
                entry[name] = {
                    "share": share.value, "count": share.count, "of": share.total,
                    "interval": list(share.interval),
                }  # fmt: skip
        return entry


def ways(
    schedule: NoiseSchedule,
    *,
    generator: bool,
    guidance: float = 1.0,
    scales: Mapping[float, str],
    blended_with: str | None,
    ddpm: bool = False,
    held_back: bool = False,
) -> Iterator[Way]:
    """Every way of asking.

    One step from several noise levels, DDIM with 4 to 50 steps, DDPM; and in a few steps with other
    guidance, told partly something else, and by other captions.

    Args:
        schedule: of the model.
        generator: it is one that draws in one step.
        guidance: with which many steps are usual.
        scales: other scales of it, with their words.
        blended_with: whose condition takes a part of that which the network is told, in words;
            None: there are no others.
        ddpm: these steps can be had.
        held_back: there are captions that were held back.
    """
    sigma = (schedule.noise / schedule.signal)[: schedule.usable]
    if generator:
        yield Way("one step")
    for level in ONE_STEP_SIGMAS:
        t = int((sigma - level).abs().argmin())
        yield Way(f"one step from t = {t}", t_init=t)
    many = "Euler" if schedule.flow else "DDIM"
    usual = "" if guidance == 1 else f", guidance {guidance:g}"
    for steps in DDIM_STEPS:
        yield Way(f"{many}, {steps} steps{usual}", steps, guidance=guidance)
    if ddpm and not schedule.flow:
        yield Way(f"DDPM, {DDIM_STEPS[-1]} steps", DDIM_STEPS[-1], ddpm=True)
    for scale, words in scales.items():
        yield Way(f"{many}, {FEW} steps, {words}", FEW, guidance=scale)
    for share in BLENDS if blended_with else ():
        words = f"{many}, {FEW} steps{usual}, condition {share:.0%} {blended_with}"
        yield Way(words, FEW, guidance=guidance, blend=share)
    if held_back:
        if generator:
            yield Way("one step, captions held back", held_back=True)
        words = f"{many}, {FEW} steps{usual}, captions held back"
        yield Way(words, FEW, guidance=guidance, held_back=True)


class Subject(ABC):
    """What forgot, with a judge who tells whether what was forgotten is there."""

    seed: int  # of the noise
    guidance: float = 1.0  # with which many steps are usual

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the class to find."""

    @abstractmethod
    def ways(self) -> Iterator[Way]:
        """Every way in which it can be asked."""

    @property
    def look(self) -> Way:
        """How it is asked in between."""
        return Way("", FEW, guidance=self.guidance)

    @abstractmethod
    def ask(self, way: Way, *, keep: bool = True) -> Asked:
        """Draw and judge images.

        Args:
            way: of asking.
            keep: images of what is to be kept too.
        """


@dataclass(frozen=True, kw_only=True)
class ClassSubject(Subject):
    """A model of classes; its network is used where and as it is."""

    model: ModelFolder
    forget: int  # index of the class
    classifier: Classifier
    images: int = 200  # of the class in each way, and about as many of all others together
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the class."""
        return self.model.class_names[self.forget]

    def ways(self) -> Iterator[Way]:
        """By the model's kind and schedule; guidance where there is a label of no class."""
        return ways(
            NoiseSchedule.whole(self.model.scheduler),
            generator=self.model.kind == "generator",
            scales={} if self.model.null_label is None else CLASS_SCALES,
            blended_with="that of the others' mean",
            ddpm=True,
        )

    def ask(self, way: Way, *, keep: bool = True) -> Asked:
        """By labels; told partly something else with the rows of their table blended."""
        sampler = Sampler(
            way.steps, self.seed, way.t_init, guidance=way.guidance - 1,
            method="ddpm" if way.ddpm else None,
        )  # fmt: skip
        others = [label for label in range(self.model.num_classes) if label != self.forget]
        kept = others * -(-self.images // len(others)) if keep else []
        labels = torch.tensor([self.forget] * self.images + kept)
        images = sampler.sample(self.blended(way.blend), labels)
        assert images is not None  # one process draws
        seen = classify(self.classifier, to_uint8(images))[0].argmax(1)
        return _asked(way, seen == labels, self.images)

    def blended(self, share: float) -> ModelFolder:
        """The model whose rows of the class are so much the mean of all others."""
        if not share:
            return self.model
        network = copy.deepcopy(self.model.network)
        with torch.no_grad():
            others = [row for row in range(self.model.num_classes) if row != self.forget]
            for rows in class_rows(network):
                rows[self.forget] = (1 - share) * rows[self.forget] + share * rows[others].mean(0)
        return replace(self.model, network=network)


@dataclass(frozen=True, kw_only=True)
class PromptSubject(Subject):
    """A pipeline that is told prompts; its network is used where it is."""

    pipeline: PipelineFolder
    # Of the concept, told and held back, of neighbours and others: what there is of each.
    captions: ConceptCaptions
    seen: Namer  # which of the names in `captions` an image shows
    guidance: float
    seed: int = 0
    told: Mapping[str, Tensor] = field(default_factory=dict)  # (L, D) instead of the encoder's

    @property
    def name(self) -> str:
        """Of the class that the concept is."""
        return self.captions.name

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        place: torch.device = next(self.pipeline.network.parameters()).device
        return place

    @property
    def asked(self) -> list[str]:
        """The captions of the concept that the erasure was told."""
        return [caption for caption, _ in self.captions.groups["forget_trained"]]

    @property
    def near(self) -> list[str]:
        """Captions of neighbours; where there are none, of others."""
        groups = self.captions.groups
        return [caption for caption, _ in groups["neighbours"] or groups["others"]]

    def ways(self) -> Iterator[Way]:
        """By the pipeline's kind and schedule."""
        return ways(
            NoiseSchedule.whole(self.pipeline.scheduler_config),
            generator=self.pipeline.description.get("kind") == "generator",
            guidance=self.guidance,
            scales={s: words for s, words in PROMPT_SCALES.items() if s != self.guidance},
            blended_with="a neighbour's" if self.near else None,
            held_back="forget_held_back" in self.captions.groups,
        )

    def ask(self, way: Way, *, keep: bool = True) -> Asked:
        """By captions; told partly something else with their embeddings blended."""
        groups = self.captions.groups
        concept = groups["forget_held_back" if way.held_back else "forget_trained"]
        kept = [*groups["neighbours"], *groups["others"]] if keep else []
        prompts = [caption for caption, _ in (*concept, *kept)]
        labels = torch.tensor([label for _, label in (*concept, *kept)])
        told = {**self.told, **self.blended(way.blend)}
        texts: Any = _Told(self.pipeline.texts, told)
        pipeline = replace(self.pipeline, texts=texts)
        guidance = way.guidance if way.steps > 1 else None
        sampler = Sampler(way.steps, self.seed, way.t_init, guidance=guidance)
        # Batch by batch: hundreds of images of a large pipeline would take gigabytes.
        seen = [self.seen(part / 2 + 0.5) for _, part in sampler.batches(pipeline, prompts)]
        return _asked(way, torch.cat(seen) == labels, len(concept))

    def blended(self, share: float) -> dict[str, Tensor]:
        """The concept's captions with embeddings that are so much those of neighbours in turn."""
        asked, near = list(dict.fromkeys(self.asked)), self.near
        if not (share and near):
            return {}
        beside = [near[index % len(near)] for index in range(len(asked))]
        texts = self.pipeline.texts
        mixed = (1 - share) * texts.encode(asked) + share * texts.encode(beside)
        return dict(zip(asked, mixed, strict=True))


class _Told:
    """A pipeline's texts, some of whose conditions are given."""

    def __init__(self, texts: Texts, told: Mapping[str, Tensor]) -> None:
        self._texts, self._told = texts, told

    def encode(self, prompts: Sequence[str], device: torch.device | None = None) -> Tensor:
        """As `Texts.encode`."""
        found = self._texts.encode(prompts, device)
        rows = [self._told.get(p, row) for p, row in zip(prompts, found, strict=True)]
        return torch.stack([row.to(found) for row in rows])


def _asked(way: Way, right: Tensor, images: int) -> Asked:
    kept = right[images:]
    return Asked(
        way.words, Share.counted(right[:images]), Share.counted(kept) if len(kept) else None
    )


def class_rows(network: nn.Module) -> list[Tensor]:
    """The network's tables of class embeddings, parameters (K, D); a DiT has one in each block."""
    return [part.weight for part in network.modules() if isinstance(part, nn.Embedding)]
