"""What `evaluate` judges, a model folder or images on disk, and what it judges by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pecker_fast.datasets import PUBLISHED_SPLIT
from pecker_fast.datasets.image_files import (
    ImageFiles,
    load_image_files,
)
from pecker_fast.datasets.loading import ImageSet, load_images, with_classes
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier, load_classifier
from pecker_fast.evaluate.classifier_files import statistics_beside
from pecker_fast.evaluate.fidelity import FidelityFigures, Inception, fidelity_figures
from pecker_fast.evaluate.forgetting import Evaluation, evaluate_images
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.kept import check_same_classes, kept_images
from pecker_fast.evaluate.sample_folder import write_samples
from pecker_fast.evaluate.sample_plan import class_plan
from pecker_fast.evaluate.sampling import Sampler, balanced_labels
from pecker_fast.evaluate.statistics_files import load_statistics
from pecker_fast.models import ModelFolder
from pecker_fast.runs.checkpoint import fingerprint

__all__ = ["Judges", "Subject", "read_real"]

_LONG = ("teacher", "training")  # figures of a model folder that are no part of a report


@dataclass(frozen=True)
class Subject:
    """Images that are to be judged, or the model that draws them.

    Attributes:
        source: the model folder, or where the images lie.
        shape: (C, H, W) of an image.
        class_names: by index; empty where the images have no classes.
        labels: (N,) int64, what each image was asked to be; None without classes.
        drawn: how the images are or were drawn, as far as that is known.
        model: draws them; None for images on disk.
        sampler: how the model draws.
        pixels: (N, C, H, W) uint8, of images on disk.
    """

    source: str
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    labels: Tensor | None
    drawn: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFolder | None = None
    sampler: Sampler | None = None
    pixels: Tensor | None = None

    @classmethod
    def of_model(cls, path: Path, sampler: Sampler, model: ModelFolder, per_class: int) -> Subject:
        """A model folder, `per_class` images of each class."""
        return cls(
            source=str(path),
            shape=model.image_shape,
            class_names=model.class_names,
            labels=balanced_labels(model.num_classes, per_class),
            drawn={**sampler.settings(model), "per_class": per_class},
            model=model,
            sampler=sampler,
        )

    @classmethod
    def of_files(cls, path: Path) -> Subject:
        """Images on disk, with what is written beside them on how they were drawn.

        Raises:
            PeckerError: see `load_image_files`.
        """
        files = load_image_files(path, progress="reading")
        names = () if files.labels is None else with_classes(files).class_names
        return cls(
            source=files.source,
            shape=tuple(files.images.shape[1:]),
            class_names=names,
            labels=files.labels,
            drawn=_drawn(files.provenance or {}),
            pixels=files.images,
        )

    def forgotten(self) -> str | None:
        """The class that the model, or what drew the images, says it has forgotten."""
        if self.model is not None:
            name = self.model.figures.get("forget")
        else:
            drawer = self.drawn.get("model")
            name = drawer.get("forgotten") if isinstance(drawer, dict) else None
        return None if name is None else str(name)

    def class_index(self, name: str) -> int:
        """The index of a class given by its name (case does not matter) or index.

        Raises:
            PeckerError: no such class, or the images have none.
        """
        if self.model is not None:
            return self.model.class_index(name)
        assert self.pixels is not None  # one of the two is there
        files = ImageFiles(self.pixels, self.labels, self.class_names or None, self.source)
        return with_classes(files).class_index(name)

    def draw(
        self, device: torch.device, ranks: Ranks, folder: Path | None = None, force: bool = False
    ) -> Tensor | None:
        """The images as PNGs hold them, (N, C, H, W) uint8; None on all processes but the first.

        Args:
            device: where to draw.
            ranks: the processes, which share the work.
            folder: where drawn images are kept, and those taken up that are there; None: nowhere.
            force: delete other samples that the folder holds.

        Raises:
            PeckerError: the folder cannot be written to, or holds something else.
        """
        if self.model is None or self.sampler is None or self.labels is None:
            return self.pixels
        self.model.unet.to(device)
        if folder is None:
            return self.sampler.pixels(self.model, self.labels, "sampling", ranks=ranks)
        plan = class_plan(self.model, self.source, self.sampler, self.labels)
        write_samples(folder, plan, ranks, "sampling", force)
        if not ranks.is_first:
            return None
        in_files = load_image_files(folder, progress="reading").images  # class by class
        images = torch.empty_like(in_files)
        images[self.labels.argsort(stable=True)] = in_files
        return images

    def network(self) -> str:
        """A hash of the model's weights; "" for images on disk."""
        return "" if self.model is None else fingerprint(self.model.unet)

    def trained(self) -> Mapping[str, Any]:
        """How the model came about, as its folder says; nothing for images on disk."""
        if self.model is None:
            return {}
        known = {k: v for k, v in self.model.figures.items() if k not in _LONG}
        return {"kind": self.model.kind, **known}


@dataclass(frozen=True)
class Judges:
    """What images are judged by; each may be missing.

    Attributes:
        classifier: names the class of an image.
        statistics: of real images in the classifier's features.
        inception: gives features for FID and its like; there whenever `real` is.
        real: real images.
    """

    classifier: Classifier | None = None
    statistics: ClassStatistics | None = None
    inception: Inception | None = None
    real: ImageFiles | None = None

    @classmethod
    def load(
        cls,
        subject: Subject,
        classifier: Path | None,
        statistics: Path | None,
        inception: Path | None,
        real: ImageFiles | None,
        device: torch.device,
    ) -> Judges:
        """Read what is given.

        Raises:
            PeckerError: something is missing, broken, or of other classes or sizes.
        """
        judge = None
        if classifier is not None:
            judge = load_classifier(classifier, subject.class_names).to(device)
        if statistics is None and classifier is not None:
            statistics = statistics_beside(classifier)
        known = None
        if statistics is not None and judge is not None:
            if subject.model is not None:
                known = load_statistics(statistics, subject.model, judge)
            elif statistics.suffix == ".npz":
                raise PeckerError(
                    f"--statistics {statistics}: for images on disk give a file of "
                    "ClassStatistics.save, as train-classifier writes beside the classifier"
                )
            else:
                known = ClassStatistics.load(statistics)
        network = None if inception is None else Inception.load(inception, device)
        return cls(judge, known, network, real)

    def check(self, subject: Subject, forget: int | None) -> None:
        """Compare real images with what is to be judged, before hours go into drawing.

        Raises:
            PeckerError: they differ in size, or in the classes that are kept.
        """
        if self.real is None:
            return
        if self.real.images.shape[2:] != subject.shape[1:]:
            sizes = [f"{h}x{w}" for h, w in (self.real.images.shape[2:], subject.shape[1:])]
            raise PeckerError(
                f"real images: {self.real.source} holds {sizes[0]} pixels, the images to judge "
                f"have {sizes[1]}; FID between sizes measures the scaling: give real images of "
                "the same size"
            )
        if forget is not None or (self.real.labels is not None and subject.labels is not None):
            name = None if forget is None else subject.class_names[forget]
            assert subject.labels is not None  # there was a class to forget, or labels
            check_same_classes(
                subject.class_names, subject.labels, subject.source, with_classes(self.real), name
            )

    def evaluate(
        self, images: Tensor, subject: Subject, forget: int | None, override: int | None
    ) -> Evaluation | None:
        """The classifier's figures of (N, C, H, W) uint8, or None without a classifier."""
        if self.classifier is None or forget is None or subject.labels is None:
            return None
        found = evaluate_images(
            images,
            subject.labels,
            self.classifier,
            self.statistics,
            forget,
            override,
            subject.sampler,
            len(subject.class_names),
            progress="judging",
        )
        if subject.sampler is not None:
            return found
        return replace(
            found,
            sampler=str(subject.drawn.get("description", found.sampler)),
            steps=int(subject.drawn.get("steps", found.steps)),
            seed=subject.drawn.get("seed", found.seed),
            guidance=float(subject.drawn.get("guidance", found.guidance)),
        )

    def fidelity(
        self, images: Tensor, subject: Subject, forget: int | None
    ) -> FidelityFigures | None:
        """FID and its like of (N, C, H, W) uint8, of the kept classes, or None without real ones.

        Without a class to forget all images are compared.
        """
        if self.inception is None or self.real is None:
            return None
        real, kept = self.real.images, images
        sources = [subject.source, self.real.source]
        if forget is not None and subject.labels is not None:
            name = subject.class_names[forget]
            judged = ImageSet(images, subject.labels, subject.class_names, subject.source)
            kept, real = kept_images(judged, name), kept_images(with_classes(self.real), name)
            sources = [f"{source}, without {name}" for source in sources]
        features = [
            self.inception.features(part, source, progress=title)
            for part, source, title in zip(
                (kept, real), sources, ("Inception, generated", "Inception, real"), strict=True
            )
        ]
        return fidelity_figures(features[0], features[1], self.inception)


def read_real(
    path: Path | None, dataset: str | None, root: Path | None, download: bool
) -> ImageFiles | None:
    """Real images of a folder, an .npz, or a data set; None where none are named.

    Raises:
        PeckerError: see `load_image_files` and `load_images`.
    """
    if path is not None:
        return load_image_files(path, progress="reading")
    if dataset is None:
        return None
    split = PUBLISHED_SPLIT.get(dataset, "train")
    found = load_images(dataset, root, split, download=download)
    return ImageFiles(found.images, found.labels, found.class_names, found.source)


def _drawn(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `sample` wrote with images, the sampler's settings beside the rest."""
    sampler = provenance.get("sampler")
    return {**provenance, **sampler} if isinstance(sampler, dict) else provenance
