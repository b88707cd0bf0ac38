"""A model, a run or images on disk, judged by a classifier and against real images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pecker_fast.datasets import PUBLISHED_SPLIT
from pecker_fast.datasets.image_files import ImageFiles, load_image_files
from pecker_fast.datasets.loading import ImageSet, load_images, with_classes
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier, load_classifier
from pecker_fast.evaluate.classifier_files import statistics_beside
from pecker_fast.evaluate.defaults import JUDGED_PER_CLASS, default_steps
from pecker_fast.evaluate.fidelity import (
    WEIGHTS_WANTED,
    FidelityFigures,
    Inception,
    fidelity_figures,
)
from pecker_fast.evaluate.forgetting import Evaluation, evaluate_images
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.judgement import Judgement
from pecker_fast.evaluate.kept import check_same_classes, check_same_size, kept_images
from pecker_fast.evaluate.sample_plan import class_plan
from pecker_fast.evaluate.samples import read_back, write_samples
from pecker_fast.evaluate.sampling import Method, Sampler, balanced_labels
from pecker_fast.evaluate.statistics_files import load_statistics
from pecker_fast.machine import machine_facts, versions
from pecker_fast.models import ModelFolder
from pecker_fast.runs.classes import class_index
from pecker_fast.runs.digest import fingerprint
from pecker_fast.runs.finding import find_model

__all__ = ["judge"]

_LONG = ("teacher", "training")  # figures of a model folder that are no part of a report

_Path = str | os.PathLike[str]


def judge(
    model: _Path | None = None,
    *,
    images: _Path | None = None,
    classifier: _Path | None = None,
    statistics: _Path | None = None,
    forget: str | int | None = None,
    override: str | int | None = None,
    real: _Path | None = None,
    dataset: str | None = None,
    data_root: _Path | None = None,
    download: bool = False,
    inception: _Path | None = None,
    per_class: int | None = None,
    steps: int | None = None,
    method: Method | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    samples: _Path | None = None,
    force: bool = False,
    device: torch.device | str = "cpu",
    ranks: Ranks | None = None,
) -> Judgement | None:
    """What `pecker-fast evaluate` does: the arguments are its options.

    Args:
        model: a model folder, or a run that made one. It draws the images that are judged.
        images: or images on disk: a folder, or an .npz.
        classifier: the judge of classes, see `load_classifier`.
        statistics: of real images in its features, for the Fréchet distance. None: those beside
            the classifier, if there are some.
        forget: the forgotten class. None: what an erased model says.
        override: the class in its place.
        real: real images for FID: a folder, or an .npz.
        dataset: or one of `DATASETS`.
        data_root: where it lies.
        download: whether it may be fetched.
        inception: file of the Inception weights, for FID.
        per_class: images of each class. None: 500.
        steps: None: 1 for an erased model, 50 for a teacher.
        method: how images are drawn. None: by `steps`.
        guidance: of a classifier-free kind, in many steps. None: 0.
        seed: of the noise. None: 0.
        samples: folder that keeps the images; what was stopped goes on with them.
        force: replace other samples that this folder holds.
        device: where to draw and to judge.
        ranks: the processes that draw together. None: this one alone.

    Returns:
        The figures; None on all processes but the first. Its `to_dict` is what --json writes.

    Raises:
        PeckerError: arguments that do not go together, or something that is missing, broken, or of
            other classes or sizes.
    """
    drawing = (per_class, steps, method, guidance, seed, samples)
    _check_subject(model, images, any(value is not None for value in drawing))
    _check_judges(classifier, statistics, override, real, dataset, inception)
    place, ranks = torch.device(device), ranks or Ranks()
    if model is None:
        assert images is not None  # checked above
        if not ranks.is_first:
            return None  # images on disk are judged by the first process alone
        ranks, subject = Ranks(), _files(images)
    else:
        subject = _model(model, per_class, steps, method, guidance, seed)
    forget = subject.forgotten() if forget is None else forget
    if classifier is not None and forget is None:
        raise PeckerError("evaluate: --classifier needs --forget CLASS, the forgotten class")
    forgotten = None if forget is None else subject.class_index(forget)
    instead = None if override is None else subject.class_index(override)
    if forgotten is not None and instead == forgotten:
        raise PeckerError(
            f"evaluate: --forget and --override are the same class "
            f"{subject.class_names[forgotten]!r}; name another override or leave it out"
        )
    judges = _Judges()

    def load() -> None:  # before hours of drawing: what is wrong with a file comes out now
        nonlocal judges
        shown = _read_real(real, dataset, data_root, download)
        judges = _load(subject, classifier, statistics, inception, shown, place)
        if shown is not None:
            check_same_size(shown.images, shown.source, subject.shape, "the images to judge have")
            if subject.labels is not None and (forgotten is not None or shown.labels is not None):
                name = None if forgotten is None else subject.class_names[forgotten]
                check_same_classes(
                    subject.class_names, subject.labels, subject.source, with_classes(shown), name
                )

    ranks.first(load)
    judged = subject.draw(place, ranks, None if samples is None else Path(samples), force)
    if judged is None:
        return None  # the first process judges what all have drawn
    return Judgement(
        source=subject.source,
        from_files=model is None,
        class_names=subject.class_names,
        forget=forgotten,
        drawn=subject.drawn,
        network="" if subject.model is None else fingerprint(subject.model.unet),
        trained=subject.trained(),
        evaluation=judges.evaluation(judged, subject, forgotten, instead),
        fidelity=judges.fidelity(judged, subject, forgotten),
        machine=machine_facts(place),
        processes=ranks.size,
        versions=versions(),
    )


@dataclass(frozen=True)
class _Subject:
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

    def forgotten(self) -> str | None:
        """The class that the model, or what drew the images, says it has forgotten."""
        if self.model is not None:
            name = self.model.figures.get("forget")
        else:
            drawer = self.drawn.get("model")
            name = drawer.get("forgotten") if isinstance(drawer, dict) else None
        return None if name is None else str(name)

    def class_index(self, name: str | int) -> int:
        """The index of a class; see `runs.classes`."""
        if self.labels is None:
            raise PeckerError(f"{self.source}: the images have no classes; leave --forget out")
        whose = self.source if self.model is None else "the model"
        return class_index(name, self.class_names, whose)

    def draw(
        self, device: torch.device, ranks: Ranks, folder: Path | None, force: bool
    ) -> Tensor | None:
        """The images as PNGs hold them, (N, C, H, W) uint8; None on all processes but the first."""
        if self.model is None or self.sampler is None or self.labels is None:
            return self.pixels
        self.model.unet.to(device)
        if folder is None:
            return self.sampler.pixels(self.model, self.labels, "sampling", ranks=ranks)
        plan = class_plan(self.model, self.source, self.sampler, self.labels)
        write_samples(folder, plan, ranks, "sampling", force)
        return read_back(folder, self.labels, "reading") if ranks.is_first else None

    def trained(self) -> Mapping[str, Any]:
        """How the model came about, as its folder says; nothing for images on disk."""
        if self.model is None:
            return {}
        known = {k: v for k, v in self.model.figures.items() if k not in _LONG}
        return {"kind": self.model.kind, **known}


def _model(
    path: _Path,
    per_class: int | None,
    steps: int | None,
    method: Method | None,
    guidance: float | None,
    seed: int | None,
) -> _Subject:
    model = ModelFolder.load(find_model(Path(path)))
    per_class = JUDGED_PER_CLASS if per_class is None else per_class
    if per_class < 2:
        raise PeckerError(f"evaluate: --per-class must be at least 2, got {per_class}")
    if steps is None:
        steps = default_steps(model.kind, method)
    sampler = Sampler(steps, seed or 0, method=method, guidance=guidance or 0.0)
    return _Subject(
        source=str(path),
        shape=model.image_shape,
        class_names=model.class_names,
        labels=balanced_labels(model.num_classes, per_class),
        drawn={**sampler.settings(model), "per_class": per_class},
        model=model,
        sampler=sampler,
    )


def _files(path: _Path) -> _Subject:
    """Images on disk, with what is written beside them on how they were drawn."""
    files = load_image_files(path, progress="reading")
    drawn = files.provenance or {}
    sampler = drawn.get("sampler")  # its settings beside the rest
    return _Subject(
        source=files.source,
        shape=tuple(files.images.shape[1:]),
        class_names=() if files.labels is None else with_classes(files).class_names,
        labels=files.labels,
        drawn={**drawn, **sampler} if isinstance(sampler, dict) else drawn,
        pixels=files.images,
    )


@dataclass(frozen=True)
class _Judges:
    """What images are judged by; each may be missing, `inception` is there whenever `real` is."""

    classifier: Classifier | None = None
    statistics: ClassStatistics | None = None
    inception: Inception | None = None
    real: ImageFiles | None = None

    def evaluation(
        self, images: Tensor, subject: _Subject, forget: int | None, override: int | None
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
        self, images: Tensor, subject: _Subject, forget: int | None
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
        generated = self.inception.features(kept, sources[0], progress="Inception, generated")
        theirs = self.inception.features(real, sources[1], progress="Inception, real")
        return fidelity_figures(generated, theirs, self.inception)


def _load(
    subject: _Subject,
    classifier: _Path | None,
    statistics: _Path | None,
    inception: _Path | None,
    real: ImageFiles | None,
    device: torch.device,
) -> _Judges:
    network = None if inception is None else Inception.load(inception, device)
    if classifier is None:
        return _Judges(inception=network, real=real)
    judges = load_classifier(classifier, subject.class_names).to(device)
    path = statistics_beside(classifier) if statistics is None else Path(statistics)
    known = None
    if path is not None and subject.model is not None:
        known = load_statistics(path, subject.model, judges)
    elif path is not None:
        if path.suffix == ".npz":
            raise PeckerError(
                f"--statistics {path}: for images on disk give a file of ClassStatistics.save, as "
                "train-classifier writes beside the classifier"
            )
        known = ClassStatistics.load(path)
    return _Judges(judges, known, network, real)


def _read_real(
    path: _Path | None, dataset: str | None, root: _Path | None, download: bool
) -> ImageFiles | None:
    """Real images of a folder, an .npz, or a data set; None where none are named."""
    if path is not None:
        return load_image_files(path, progress="reading")
    if dataset is None:
        return None
    split = PUBLISHED_SPLIT.get(dataset, "train")
    found = load_images(dataset, None if root is None else Path(root), split, download=download)
    return ImageFiles(found.images, found.labels, found.class_names, found.source)


def _check_subject(model: _Path | None, images: _Path | None, draws: bool) -> None:
    if (model is None) == (images is None):
        raise PeckerError(
            "evaluate: give a model folder MODEL or --images FOLDER, and not both: the one draws "
            "images, the other has them"
        )
    if images is not None and draws:
        raise PeckerError(
            "evaluate: --per-class, --steps, --sampler, --guidance, --seed and --samples say how a "
            f"model draws, but {images} has its images already; leave them out"
        )


def _check_judges(
    classifier: _Path | None,
    statistics: _Path | None,
    override: str | int | None,
    real: _Path | None,
    dataset: str | None,
    inception: _Path | None,
) -> None:
    for option, value in (("--statistics", statistics), ("--override", override)):
        if value is not None and classifier is None:
            raise PeckerError(f"evaluate: {option} needs --classifier")
    if real is not None and dataset is not None:
        raise PeckerError("evaluate: give the real images as --real or as --dataset, not both")
    given = real is not None or dataset is not None
    if given and inception is None:
        raise PeckerError(f"evaluate: FID needs --inception FILE, {WEIGHTS_WANTED}")
    if inception is not None and not given:
        raise PeckerError(
            "evaluate: --inception needs real images: --real FOLDER, or --dataset NAME with "
            "--data-root"
        )
    if classifier is None and not given:
        raise PeckerError(
            "evaluate: nothing to judge by; give --classifier, or real images (--real or "
            "--dataset) and --inception"
        )
