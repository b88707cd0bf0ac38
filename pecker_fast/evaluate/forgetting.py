"""Has the class gone, and are the others still there: the figures of a set of generated images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifying import classify_with_early
from pecker_fast.evaluate.frechet import (
    ClassStatistics,
    FeatureStatistics,
    frechet_distance,
    measured_distance,
)
from pecker_fast.evaluate.intervals import Interval, Share
from pecker_fast.evaluate.recognition import Recognition
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.runs.digest import fingerprint

if TYPE_CHECKING:
    from pecker_fast.evaluate.classifier import Classifier

__all__ = [
    "Evaluation",
    "check_figures",
    "distance_to",
    "evaluate_images",
    "kept_statistics",
]


@dataclass(frozen=True)
class Evaluation:
    """Figures of images that were drawn class by class, judged by a classifier."""

    forget: int  # index of the forgotten class
    override: int | None  # index of the class in its place, or None
    forget_count: int  # images asked for the forgotten class; the denominator of the next four
    forget_accuracy: float  # share of them that the classifier calls the forgotten class
    # Mean probability that the classifier gives the forgotten class on them.
    forget_probability: float
    forget_entropy: float  # mean entropy of the classifier on them, in nats
    # Share of them that the classifier calls the override class, or None.
    override_accuracy: float | None
    keep_count: int  # images asked for any other class
    keep_accuracy: float  # share of those that the classifier calls what was asked for
    class_accuracy: tuple[float | None, ...]  # the same per class; None for a class without images
    # Fréchet distance of the kept classes' images to real images of the kept classes, in the
    # classifier's feature space, or None without statistics.
    frechet: float | None
    # The same for all images, those asked for the forgotten class included.
    frechet_all: float | None
    frechet_real_count: int | None  # real images behind the statistics, or None
    sampler: str  # how the images were drawn, in words
    steps: int  # of the sampler; 0 where nobody says. Guidance evaluates the network twice in each.
    seed: int | None  # of the noise, or None where the images came from elsewhere
    guidance: float = 0.0  # w of classifier-free guidance; 0 for none
    # What the real images behind the statistics are, in words, or None.
    frechet_source: str | None = None
    judge: str = ""  # the classifier: its kind and the first digits of a hash of its weights
    class_counts: tuple[int, ...] = ()  # images asked for each class; empty where nobody says
    # Images asked for the forgotten class that the classifier takes for each class; likewise.
    seen_as: tuple[int, ...] = ()
    # 95 % interval of `frechet`, see `measured_distance`, or None.
    frechet_interval: Interval | None = None
    # What a second classifier says of the same images, or None without one.
    second: Evaluation | None = None
    # The same as `frechet` in an earlier layer, see `classify_with_early`; None without statistics
    # of it.
    frechet_early: float | None = None
    frechet_early_interval: Interval | None = None  # its 95 % interval, or None

    def __post_init__(self) -> None:
        classes = len(self.class_accuracy)
        for name, label in (("forget", self.forget), ("override", self.override)):
            if label is not None and not 0 <= label < classes:
                raise PeckerError(f"{name} {label} is none of {classes} classes")
        shares = (
            self.forget_accuracy, self.keep_accuracy, self.override_accuracy, *self.class_accuracy,
        )  # fmt: skip
        check_figures(shares, (self.forget_count, self.keep_count, self.steps))

    @property
    def unlearning_accuracy(self) -> float:
        """UA of the literature: share of the forgotten class's images that are not taken for it."""
        return 1 - self.forget_accuracy

    @property
    def forgotten(self) -> Share:
        """Images of the forgotten class that are taken for it."""
        return Share.of(self.forget_accuracy, self.forget_count)

    @property
    def unlearned(self) -> Share:
        """All others of them, the count behind `unlearning_accuracy`."""
        return self.forgotten.rest

    @property
    def overridden(self) -> Share | None:
        """Those of them that are taken for the override class."""
        found = self.override_accuracy
        return None if found is None else Share.of(found, self.forget_count)

    @property
    def kept(self) -> Share:
        """Images of all other classes that are recognised."""
        return Share.of(self.keep_accuracy, self.keep_count)

    @property
    def class_shares(self) -> tuple[Share | None, ...]:
        """Images of each class that are recognised; None without images or their number."""
        counts = self.class_counts or (0,) * len(self.class_accuracy)
        return tuple(
            Share.of(share, count) if share is not None and count else None
            for share, count in zip(self.class_accuracy, counts, strict=True)
        )

    def recognition(self, names: Sequence[str]) -> Recognition:
        """The counts alone, under the names of the classes."""
        known = [*names, *(f"class {index}" for index in range(len(names), len(self.seen_as)))]
        return Recognition(
            {"forget": self.forgotten, "keep": self.kept},
            {
                name: share
                for index, (name, share) in enumerate(zip(names, self.class_shares, strict=True))
                if share is not None and index != self.forget
            },
            dict(zip(known, self.seen_as, strict=False)),
            self.sampler,
            self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; intervals are of 95 %."""
        shares = {"forget": self.forgotten, "override": self.overridden, "keep": self.kept}
        facts = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {
            **facts,
            "unlearning_accuracy": self.unlearning_accuracy,
            **{f"{name}_interval": _interval(share) for name, share in shares.items()},
            "second": None if self.second is None else self.second.to_dict(),
            "class_intervals": [_interval(share) for share in self.class_shares],
        }


def check_figures(shares: Iterable[float | None], counts: Iterable[float | None]) -> None:
    """Refuse figures, which may come from a file, that nothing can have.

    Raises:
        PeckerError: a share outside of [0, 1], or a count below 0.
    """
    if wrong := [share for share in shares if share is not None and (share < 0 or share > 1)]:
        raise PeckerError(f"an accuracy of {wrong[0]} is not in [0, 1]")
    if wrong := [count for count in counts if count is not None and count < 0]:
        raise PeckerError(f"a count of {wrong[0]} is below 0")


def evaluate_images(
    images: Tensor,
    labels: Tensor,
    classifier: Classifier,
    statistics: ClassStatistics | None,
    forget: int,
    override: int | None = None,
    sampler: Sampler | None = None,
    num_classes: int | None = None,
    progress: str | None = None,
    second: Classifier | None = None,
) -> Evaluation:
    """Judge images (N, C, H, W) that were asked for `labels` (N,).

    Args:
        images: uint8, or float32 in [-1, 1].
        labels: int64 class indices, what each image was asked to be.
        classifier: the judge.
        statistics: per-class statistics of real images under the same classifier, or None.
        forget: index of the forgotten class.
        override: index of the class in its place, or None.
        sampler: how the images were drawn; recorded.
        num_classes: classes of the model (None: those of the classifier).
        progress: title of a progress bar on stderr; None for no bar.
        second: another judge, or None.

    Raises:
        PeckerError: no image of the forgotten class or none of the kept ones, a classifier with
            fewer classes than the model, or statistics of another classifier.
    """
    asked = (labels.cpu(), forget, override, sampler, num_classes, progress)
    found = _judged(images, classifier, statistics, *asked)
    return found if second is None else replace(found, second=_judged(images, second, None, *asked))


def _judged(
    images: Tensor,
    classifier: Classifier,
    statistics: ClassStatistics | None,
    labels: Tensor,
    forget: int,
    override: int | None,
    sampler: Sampler | None,
    num_classes: int | None,
    progress: str | None,
) -> Evaluation:
    """What one judge says."""
    logits, features, early = classify_with_early(classifier, images, progress)
    num_classes = logits.shape[1] if num_classes is None else num_classes
    if logits.shape[1] < num_classes:
        raise PeckerError(
            f"classifier: {logits.shape[1]} classes, but the model has {num_classes}; "
            "give a classifier trained on the model's classes, in the same order"
        )
    asked_forget = labels == forget
    forget_count = int(asked_forget.sum())
    keep_count = len(labels) - forget_count
    if forget_count == 0 or keep_count == 0:
        raise PeckerError(
            f"evaluation: {forget_count} images of the forgotten class and {keep_count} of the "
            "others; both are needed"
        )
    predicted = logits.argmax(dim=1)
    correct = predicted == labels
    log_probabilities = F.log_softmax(logits[asked_forget].double(), dim=1)
    probabilities = log_probabilities.exp()
    # p log p has the limit 0 at p = 0, where exp() has underflowed and log p is still finite.
    entropy = -(probabilities * log_probabilities).sum(dim=1).mean()
    real = None if statistics is None else kept_statistics(statistics, forget, num_classes)
    before = None
    if statistics is not None and statistics.early is not None:
        before = kept_statistics(statistics.early, forget, num_classes)
    frechet, interval = _distance(features[~asked_forget], real)
    early_frechet, early_interval = _distance(
        None if early is None else early[~asked_forget], before
    )
    taken = torch.bincount(predicted[asked_forget], minlength=logits.shape[1])
    return Evaluation(
        forget=forget,
        override=override,
        forget_count=forget_count,
        forget_accuracy=_share(correct[asked_forget]),
        forget_probability=float(probabilities[:, forget].mean()),
        forget_entropy=float(entropy),
        override_accuracy=None if override is None else _share(predicted[asked_forget] == override),
        keep_count=keep_count,
        keep_accuracy=_share(correct[~asked_forget]),
        class_accuracy=tuple(
            _share(correct[labels == index]) if bool((labels == index).any()) else None
            for index in range(num_classes)
        ),
        frechet=frechet,
        frechet_all=None if real is None else distance_to(features, real),
        frechet_real_count=None if real is None else real.count,
        sampler="given images" if sampler is None else sampler.describe(),
        steps=0 if sampler is None else sampler.steps,
        seed=None if sampler is None else sampler.seed,
        guidance=0.0 if sampler is None else sampler.guidance or 0.0,
        frechet_source=None if real is None else real.source,
        judge=_name(classifier),
        class_counts=tuple(torch.bincount(labels, minlength=num_classes).tolist()),
        seen_as=tuple(taken.tolist()),
        frechet_interval=interval,
        frechet_early=early_frechet,
        frechet_early_interval=early_interval,
    )


def _name(classifier: Classifier) -> str:
    kind = type(classifier).__name__
    if not isinstance(classifier, nn.Module):
        return kind
    return f"{kind} {fingerprint(classifier)[:12]}"


def _share(hits: Tensor) -> float:
    return Share.counted(hits).value


def _interval(share: Share | None) -> list[float] | None:
    return None if share is None else list(share.interval)


def _distance(
    features: Tensor | None, real: FeatureStatistics | None
) -> tuple[float | None, Interval | None]:
    return (None, None) if features is None or real is None else measured_distance(features, real)


def distance_to(features: Tensor, real: FeatureStatistics) -> float:
    """Fréchet distance of features (N, F)."""
    return frechet_distance(FeatureStatistics.from_features(features), real)


def kept_statistics(
    statistics: ClassStatistics, forget: int, num_classes: int
) -> FeatureStatistics:
    """Statistics of all classes but one.

    Raises:
        PeckerError: they are of another number of classes.
    """
    if statistics.num_classes != num_classes:
        raise PeckerError(
            f"feature statistics: of {statistics.num_classes} classes, but the model has "
            f"{num_classes}; compute them from images of the model's classes"
        )
    return statistics.pooled(index for index in range(num_classes) if index != forget)
