"""Train the classifier that judges images, and measure it on images that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pecker_fast.datasets.loading import ImageSet, load_images
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.classifying import classify, classify_with_early
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.reference import ClassFigures
from pecker_fast.evaluate.resnet import ResNetClassifier
from pecker_fast.machine import machine_facts, versions
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.methods.image_batches import ShuffledEpochs
from pecker_fast.methods.training_config import ClassifierConfig
from pecker_fast.runs.digest import fingerprint
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.learner import Learner
from pecker_fast.runs.metrics import ONE_LOSS
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.run import Run, Stateful

__all__ = ["ClassifierTrainer", "MeasuredClassifier", "load_split_images"]


@dataclass(frozen=True)
class MeasuredClassifier:
    """A trained classifier, on the CPU, and what is known of it.

    Attributes:
        network: In eval mode.
        statistics: Of the images it was trained on, in its features.
        card: Test accuracy, images, configuration, machine and versions, as plain types.
    """

    network: SmallClassifier | ResNetClassifier
    statistics: ClassStatistics
    card: Mapping[str, Any]


Batch: TypeAlias = tuple[Tensor, Tensor]
"""(N, C, H, W) images as the network sees them and (N,) int64 labels."""


class ClassifierTrainer(Run[Batch]):
    """Trains a classifier; `run`, then `measure`.

    Attributes:
        network: What is trained.
    """

    config: ClassifierConfig
    lower = "lr"
    terms = (ONE_LOSS,)

    def __init__(
        self,
        images: ImageSet,
        config: ClassifierConfig,
        device: torch.device,
        *,
        weights: tuple[str, Mapping[str, Tensor]] | None = None,
        directory: RunDirectory | None = None,
        progress: bool = False,
    ) -> None:
        """Take up the run that the directory holds, or start one.

        Args:
            images: To train on.
            config: The run; where `iterations` is None, as many as its epochs need.
            device: Where to train.
            weights: Of torchvision's resnet34, to start from, and what they are called.
                None = random ones.
            directory: Where checkpoints go. None = nothing is written.
            progress: Show progress bars.

        Raises:
            PeckerError: A class with fewer than two images, weights of another network, or a
                directory that holds another run.
        """
        _check_countable(images)
        config = config.resolved(len(images))
        with torch.random.fork_rng(devices=[]):  # the seed of the run, whatever was drawn before
            torch.manual_seed(config.seed)
            network = _build(images, config, "cifar" if weights is None else "imagenet")
        self._started_from: dict[str, str] | None = None
        start = {}
        if weights is not None:
            name, values = weights
            if not isinstance(network, ResNetClassifier):
                raise PeckerError(f"{name}: pretrained weights are for resnet34, not {config.arch}")
            network.start_from(values, name)
            start = {"start": fingerprint(network)[:16]}
            self._started_from = {"file": Path(name).name, "network": start["start"]}
        super().__init__(
            config,
            device,
            lambda: {"images": images.fingerprint(), **start},
            directory=directory,
            title="classifier" if progress else None,
        )
        self.network = network.to(device)
        self._learner = Learner(
            network, None, config.lr, self._optimizer, clip_norm=config.optimizer.clip_norm
        )
        self.learners.append(self._learner)
        self._images = images.to(device) if device.type == "cuda" else images
        self._order = ShuffledEpochs(len(images), config.batch_size, config.seed)
        self.begin()

    def _optimizer(
        self, network: nn.Module, _: SaliencyMask | None, lr: float
    ) -> torch.optim.Optimizer:
        """AdamW; where weights are fine-tuned, Adam, ten times as fast for the last layer."""
        head = network.get_submodule("head" if isinstance(network, SmallClassifier) else "fc")
        in_head = {id(param) for param in head.parameters()}
        body = [param for param in network.parameters() if id(param) not in in_head]
        options = self.config.optimizer
        scratch = self._started_from is None
        kind = torch.optim.AdamW if scratch else torch.optim.Adam
        groups: list[dict[str, Any]] = [{"params": body}, {"params": list(head.parameters())}]
        groups[1]["lr"] = lr if scratch else 10 * lr
        return kind(
            groups,
            lr=lr,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
            # torch's fused CPU kernel is wrong for mixed strides.
            fused=self.device.type == "cuda",
        )

    def draw(self, random: IterationRandom) -> Batch:
        """Images, half of them mirrored and every other one noisy, and their labels."""
        config, images = self.config, self._images
        chosen = self._order.indices(random.iteration)
        count = len(chosen)
        seen = images.batch(chosen, self.device, random.coins(count, 0.5) if config.flip else None)
        if config.noise > 0:
            noise = random.normal(tuple(seen.shape), torch.float32)
            sizes = config.noise * random.uniform(count)
            sizes[1::2] = 0
            seen = seen + sizes[:, None, None, None] * noise
        return seen, images.labels[chosen].to(self.device)

    def advance(self, batch: Batch) -> list[Tensor]:
        """One step down the cross-entropy."""
        seen, labels = batch
        config = self.config
        mixed = config.precision == "autocast"
        self._learner.learn()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            logits = self.network(seen)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self._learner.step()
        return [loss]

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """The one network."""
        yield "", self.network

    def parts(self) -> Mapping[str, Stateful]:
        """Network and optimizer."""
        return {"network": self.network, "optimizer": self._learner}

    def measure(self, test: ImageSet) -> MeasuredClassifier:
        """Judge test images, and take the statistics of the training images. Call it at the end.

        Args:
            test: Of the classes and size of the training images.
        """
        network = self.network.eval().requires_grad_(False)
        titles = ("test images", "statistics") if self._title else (None, None)
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False  # or the figures would be those of this card
        try:
            logits, _ = classify(network, test.images, progress=titles[0])
            _, features, early = classify_with_early(network, self._images.images, titles[1])
        finally:
            torch.backends.cudnn.allow_tf32 = tf32
        correct = (logits.argmax(dim=1) == test.labels).double()
        train = self._images
        statistics = ClassStatistics.from_features(
            features, train.labels, train.num_classes, train.source, early
        )
        real = ClassFigures.of_real(test.images, test.labels, network, statistics, test.source)
        of_class = [correct[test.labels == index] for index in range(test.num_classes)]
        card = {
            "arch": self.config.arch,
            "class_names": list(test.class_names),
            "test_accuracy": float(correct.mean()),
            "test_count": len(test),
            "test_images": test.source,
            "class_test_accuracy": [float(c.mean()) if len(c) else None for c in of_class],
            "test_figures": None if real is None else real.to_dict(),
            "train_count": len(self._images),
            "train_images": self._images.source,
            "started_from": self._started_from,
            "iterations": self.iteration,
            "seconds": round(self.stopwatch.seconds, 2),
            "config": self.config.model_dump(mode="json"),
            "machine": machine_facts(self.device),
            "versions": versions(),
        }
        return MeasuredClassifier(network.cpu(), statistics, card)


def load_split_images(
    dataset: str, root: Path | None, config: ClassifierConfig, *, download: bool = False
) -> tuple[ImageSet, ImageSet]:
    """The images to train on and those to test on.

    With `config.held_out` they are split anew, under the seed: both keep the order of the data set.

    Raises:
        PeckerError: See `load_images`; or nothing would be left to train on, too little of a class,
            or the two have other classes or sizes.
    """
    count = config.held_out
    if count is None:
        train = load_images(dataset, root, "train", download=download)
        test = load_images(dataset, root, "test")
    else:
        everything = load_images(dataset, root, "all", download=download)
        if count >= len(everything):
            raise PeckerError(
                f"held_out {count:,}: {everything.source} has {len(everything):,} images, and some "
                "must be left to train on"
            )
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(everything), generator=generator)
        tested, trained = order[:count].sort().values, order[count:].sort().values
        train = everything.select(trained, f"without {count:,} to test on")
        test = everything.select(tested, f"{count:,} of them")
    if (test.class_names, test.image_shape) != (train.class_names, train.image_shape):
        raise PeckerError(
            f"train-classifier: the test images ({test.source}) have other classes or another "
            f"size than the training images ({train.source})"
        )
    _check_countable(train)
    return train, test


def _check_countable(train: ImageSet) -> None:
    """Each class needs two images for its statistics."""
    counts = train.labels.bincount(minlength=train.num_classes)
    if (least := int(counts.min())) < 2:
        name = train.class_names[int(counts.argmin())]
        raise PeckerError(
            f"train-classifier: {train.source}: class {name!r} has {least} images to train on, "
            "which must be 2 at least; leave the class out, or add images"
        )


def _build(
    images: ImageSet, config: ClassifierConfig, stem: Literal["cifar", "imagenet"]
) -> SmallClassifier | ResNetClassifier:
    channels = images.image_shape[0]
    if config.arch == "small":
        return SmallClassifier(images.num_classes, channels, config.width)
    return ResNetClassifier(images.num_classes, channels, config.width, stem, config.input_size)
