"""Has the class gone, and are the others still there: the figures of a set of generated images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pecker_fast.datasets.pixels import to_float
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.frechet import ClassStatistics, FeatureStatistics, frechet_distance
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.runs.digest import fingerprint

if TYPE_CHECKING:
    from pecker_fast.evaluate.classifier import Classifier

__all__ = ["Evaluation", "Hits", "TeacherFigures", "classify", "evaluate_images", "percent"]


@dataclass(frozen=True)
class Hits:
    """So many of so many images."""

    hits: int
    count: int

    @classmethod
    def of(cls, hits: Tensor) -> Hits:
        """Count what is true."""
        return cls(int(hits.sum()), hits.numel())

    @property
    def share(self) -> float | None:
        """Hits of the images, or None without images."""
        return self.hits / self.count if self.count else None

    def __add__(self, other: Hits) -> Hits:
        return Hits(self.hits + other.hits, self.count + other.count)

    def __str__(self) -> str:
        return "no images" if self.share is None else percent(self.share)


@dataclass(frozen=True)
class Evaluation:
    """Figures of images that were drawn class by class, judged by a classifier.

    Attributes:
        forget: index of the forgotten class.
        override: index of the class in its place, or None.
        forget_count: images asked for the forgotten class; the denominator of the next four.
        forget_accuracy: share of them that the classifier calls the forgotten class.
        forget_probability: mean probability that the classifier gives the forgotten class on them.
        forget_entropy: mean entropy of the classifier on them, in nats.
        override_accuracy: share of them that the classifier calls the override class, or None.
        keep_count: images asked for any other class.
        keep_accuracy: share of those that the classifier calls what was asked for.
        class_accuracy: the same per class; None for a class without images.
        frechet: Fréchet distance of the kept classes' images to real images of the kept classes,
            in the classifier's feature space, or None without statistics.
        frechet_all: the same for all images, those asked for the forgotten class included.
        frechet_real_count: real images behind the statistics, or None.
        sampler: how the images were drawn, in words.
        steps: of the sampler; 0 where nobody says. Guidance evaluates the network twice in each.
        seed: of the noise, or None where the images came from elsewhere.
        guidance: w of classifier-free guidance; 0 for none.
        frechet_source: what the real images behind the statistics are, in words, or None.
        judge: the classifier: its kind and the first digits of a hash of its weights.
    """

    forget: int
    override: int | None
    forget_count: int
    forget_accuracy: float
    forget_probability: float
    forget_entropy: float
    override_accuracy: float | None
    keep_count: int
    keep_accuracy: float
    class_accuracy: tuple[float | None, ...]
    frechet: float | None
    frechet_all: float | None
    frechet_real_count: int | None
    sampler: str
    steps: int
    seed: int | None
    guidance: float = 0.0
    frechet_source: str | None = None
    judge: str = ""

    def __post_init__(self) -> None:
        classes = len(self.class_accuracy)
        for name, label in (("forget", self.forget), ("override", self.override)):
            if label is not None and not 0 <= label < classes:
                raise PeckerError(f"{name} {label} is none of {classes} classes")
        shares = (
            self.forget_accuracy, self.keep_accuracy, self.override_accuracy, *self.class_accuracy
        )  # fmt: skip
        check_figures(shares, (self.forget_count, self.keep_count, self.steps))

    @property
    def unlearning_accuracy(self) -> float:
        """UA of the literature: share of the forgotten class's images that are not taken for it."""
        return 1 - self.forget_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            **asdict(self),
            "class_accuracy": list(self.class_accuracy),
            "unlearning_accuracy": self.unlearning_accuracy,
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


@torch.no_grad()
def classify(
    classifier: Classifier, images: Tensor, batch_size: int = 500, progress: str | None = None
) -> tuple[Tensor, Tensor]:
    """Run the classifier in batches.

    Args:
        classifier: see `Classifier`.
        images: (N, C, H, W), uint8, or floats in [-1, 1]; each batch is moved to where the
            classifier is.
        batch_size: images per forward pass.
        progress: title of a progress bar on stderr; None for no bar.

    Returns:
        Logits (N, K) and features (N, F), float32 on the CPU.

    Raises:
        PeckerError: no images, or logits that are not finite.
    """
    if len(images) == 0:
        raise PeckerError("evaluation: there are no images to classify")
    weight = next(classifier.parameters(), images) if isinstance(classifier, nn.Module) else images
    batches = tqdm(
        torch.split(images, batch_size), desc=progress, unit="batch", disable=progress is None
    )
    parts = [classifier.logits_and_features(to_float(part.to(weight.device))) for part in batches]
    logits = torch.cat([part[0] for part in parts]).float().cpu()
    features = torch.cat([part[1] for part in parts]).float().cpu()
    if not torch.isfinite(logits).all():
        raise PeckerError(
            "evaluation: the classifier's logits contain NaN or infinity; "
            "check that the images are finite and lie in [-1, 1]"
        )
    return logits, features


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

    Raises:
        PeckerError: no image of the forgotten class or none of the kept ones, a classifier with
            fewer classes than the model, or statistics of another classifier.
    """
    logits, features = classify(classifier, images, progress=progress)
    num_classes = logits.shape[1] if num_classes is None else num_classes
    if logits.shape[1] < num_classes:
        raise PeckerError(
            f"classifier: {logits.shape[1]} classes, but the model has {num_classes}; "
            "give a classifier trained on the model's classes, in the same order"
        )
    labels = labels.cpu()
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
    real = None if statistics is None else _kept_statistics(statistics, forget, num_classes)
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
        frechet=None if real is None else _distance(features[~asked_forget], real),
        frechet_all=None if real is None else _distance(features, real),
        frechet_real_count=None if real is None else real.count,
        sampler="given images" if sampler is None else sampler.describe(),
        steps=0 if sampler is None else sampler.steps,
        seed=None if sampler is None else sampler.seed,
        guidance=0.0 if sampler is None else sampler.guidance,
        frechet_source=None if real is None else real.source,
        judge=_name(classifier),
    )


@dataclass(frozen=True)
class TeacherFigures:
    """What a teacher's own many-step samples reach, for whichever class is to be forgotten.

    They ship with a model folder (`ModelFolder.figures["teacher"]`) because sampling them takes
    minutes on a CPU.

    Attributes:
        steps: DDIM steps.
        seed: of the noise.
        per_class: images per class.
        class_accuracy: share of each class's images that the classifier calls that class.
        frechet_without: Fréchet distance of all other classes, by the class left out; empty
            without statistics.
        first: how many of the first images (see `balanced_labels`) `first_correct` counts.
        first_correct: correct ones among them. Redrawing that many checks the figures quickly.
    """

    steps: int
    seed: int
    per_class: int
    class_accuracy: tuple[float, ...]
    frechet_without: tuple[float, ...]
    first: int
    first_correct: int

    @classmethod
    def of_images(
        cls,
        images: Tensor,
        labels: Tensor,
        classifier: Classifier,
        statistics: ClassStatistics | None,
        sampler: Sampler,
        first: int = 200,
        progress: str | None = None,
    ) -> TeacherFigures:
        """Take all figures of images (N, C, H, W), uint8, in the order of `balanced_labels`."""
        classes = range(int(labels.max()) + 1)
        logits, features = classify(classifier, images, progress=progress)
        correct = logits.argmax(dim=1) == labels
        frechet: tuple[float, ...] = ()
        if statistics is not None:
            real = (_kept_statistics(statistics, k, len(classes)) for k in classes)
            frechet = tuple(_distance(features[labels != k], kept) for k, kept in enumerate(real))
        first = min(first, len(labels))
        return cls(
            steps=sampler.steps,
            seed=sampler.seed,
            per_class=len(labels) // len(classes),
            class_accuracy=tuple(_share(correct[labels == k]) for k in classes),
            frechet_without=frechet,
            first=first,
            first_correct=int(correct[:first].sum()),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TeacherFigures:
        """Read what `to_dict` gave.

        Raises:
            PeckerError: a key is missing or unknown.
        """
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        try:
            return cls(**read)
        except TypeError as error:
            raise PeckerError(
                f"model folder: its shipped teacher figures cannot be read ({error}); "
                "measure them again"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def forget_accuracy(self, forget: int) -> float:
        """Accuracy of the class to be forgotten."""
        return self.class_accuracy[forget]

    def keep_accuracy(self, forget: int) -> float:
        """Accuracy of all others; every class has the same number of images."""
        kept = [a for index, a in enumerate(self.class_accuracy) if index != forget]
        return sum(kept) / len(kept)

    def frechet(self, forget: int) -> float | None:
        """Fréchet distance of all others, or None where it was not measured."""
        return self.frechet_without[forget] if self.frechet_without else None


def percent(share: float) -> str:
    """0.9731 -> '97.3 %'."""
    return f"{100 * share:.1f} %"


def _name(classifier: Classifier) -> str:
    kind = type(classifier).__name__
    if not isinstance(classifier, nn.Module):
        return kind
    return f"{kind} {fingerprint(classifier)[:12]}"


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / hits.numel()


def _distance(features: Tensor, real: FeatureStatistics) -> float:
    return frechet_distance(FeatureStatistics.from_features(features), real)


def _kept_statistics(
    statistics: ClassStatistics, forget: int, num_classes: int
) -> FeatureStatistics:
    if statistics.num_classes != num_classes:
        raise PeckerError(
            f"feature statistics: of {statistics.num_classes} classes, but the model has "
            f"{num_classes}; compute them from images of the model's classes"
        )
    return statistics.pooled(index for index in range(num_classes) if index != forget)
