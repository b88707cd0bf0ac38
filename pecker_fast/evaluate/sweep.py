"""A model that forgot a class, asked for it in every way that a sampler can ask."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.evaluate.classifier import Classifier
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.sampling import Sampler

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["Asked", "class_rows", "recognised", "sweep", "ways"]

DDIM_STEPS = (4, 10, 20, 50)
ONE_STEP_SIGMAS = (1.0, 1.5, 4.0, 8.0)  # noise-to-signal ratios beside the model's own, about 2.5
GUIDANCE = 2.0
BLENDS = (0.25, 0.5)


@dataclass(frozen=True)
class Asked:
    """What came of one way of asking.

    Attributes:
        way: in words.
        found: images that the classifier calls the forgotten class, of those asked for it.
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


def recognised(
    model: ModelFolder, sampler: Sampler, labels: Tensor, classifier: Classifier
) -> Tensor:
    """What the classifier calls the images that are drawn for these labels; (N,) int64."""
    images = sampler.sample(model, labels)
    assert images is not None  # one process draws
    return classify(classifier, to_uint8(images))[0].argmax(1)


def ways(model: ModelFolder, forget: int, seed: int) -> Iterator[tuple[str, Sampler, ModelFolder]]:
    """Every way of asking: in words, how to draw, and from what.

    One step from several noise levels, DDIM with 4 to 50 steps, DDPM; and with DDIM under a blend
    of the class's embedding and each neighbour in turn, and with guidance where there is a "no
    class".
    """
    own = Sampler(1, seed)
    schedule = NoiseSchedule.whole(model.scheduler)
    sigma = (schedule.noise / schedule.signal)[: schedule.usable]
    if model.kind == "generator":
        yield "one step", own, model
    for level in ONE_STEP_SIGMAS:
        t = int((sigma - level).abs().argmin())
        yield f"one step from t = {t}", replace(own, t_init=t), model
    for steps in DDIM_STEPS:
        yield f"DDIM, {steps} steps", Sampler(steps, seed), model
    if not schedule.flow:
        yield f"DDPM, {DDIM_STEPS[-1]} steps", Sampler(DDIM_STEPS[-1], seed, method="ddpm"), model
    if model.null_label is not None:
        guided = Sampler(DDIM_STEPS[1], seed, guidance=GUIDANCE)
        yield f"{guided.describe()}", guided, model
    for share in BLENDS:
        blended = copy.deepcopy(model.network)
        with torch.no_grad():
            others = [row for row in range(model.num_classes) if row != forget]
            for rows in class_rows(blended):
                rows[forget] = (1 - share) * rows[forget] + share * rows[others].mean(0)
        words = f"DDIM, {DDIM_STEPS[1]} steps, condition {share:.0%} that of the others' mean"
        yield words, Sampler(DDIM_STEPS[1], seed), replace(model, network=blended)


def sweep(
    model: ModelFolder, forget: int, classifier: Classifier, images: int = 200, seed: int = 0
) -> Iterator[Asked]:
    """Ask in every way, one after the other.

    Args:
        model: what forgot; its network is used where and as it is.
        forget: index of the class.
        classifier: tells whether it is there.
        images: of the class in each way, and about as many of all others together.
        seed: of the noise.
    """
    others = [label for label in range(model.num_classes) if label != forget]
    each = -(-images // len(others))
    labels = torch.tensor([forget] * images + others * each)
    for words, sampler, asked in ways(model, forget, seed):
        found = recognised(asked, sampler, labels, classifier)
        is_kept = found[images:] == labels[images:]
        yield Asked(
            words,
            Share(int((found[:images] == forget).sum()), images),
            Share(int(is_kept.sum()), len(is_kept)),
        )


def class_rows(network: nn.Module) -> list[Tensor]:
    """The network's tables of class embeddings, parameters (K, D); a DiT has one in each block."""
    return [part.weight for part in network.modules() if isinstance(part, nn.Embedding)]
