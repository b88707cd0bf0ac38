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
from pecker_fast.datasets.image_files import load_image_files
from pecker_fast.datasets.loading import ImageSet, load_images, with_classes
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.defaults import JUDGED_PER_CLASS, default_steps
from pecker_fast.evaluate.fidelity import WEIGHTS_WANTED, FidelityFigures
from pecker_fast.evaluate.judgement import Judgement, Written
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.kept import Images, check_comparable, kept_images
from pecker_fast.evaluate.sample_plan import class_plan
from pecker_fast.evaluate.samples import read_back, write_samples
from pecker_fast.evaluate.sampling import Method, Sampler, balanced_labels
from pecker_fast.machine import machine_facts, versions
from pecker_fast.models import ModelFolder
from pecker_fast.runs.classes import class_index
from pecker_fast.runs.digest import fingerprint
from pecker_fast.runs.finding import find_model
from pecker_fast.runs.reading import checked

__all__ = ["judge"]

_LONG = ("teacher", "training")  # figures of a model folder that are no part of a report

_Path = str | os.PathLike[str]


def judge(
    model: _Path | None = None,
    *,
    images: _Path | None = None,
    classifier: _Path | None = None,
    second_classifier: _Path | None = None,
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
    eta: float | None = None,
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
        second_classifier: another judge of the same classes.
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
        eta: how random DDIM's steps are. None: 0.
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
    drawing = (per_class, steps, method, guidance, eta, seed, samples)
    has_real = real is not None or dataset is not None
    for is_wrong, message in (
        ((model is None) == (images is None),
         "give a model folder MODEL or --images FOLDER, and not both: one draws, one has images"),
        (images is not None and any(value is not None for value in drawing),
         ("--per-class, --steps, --sampler, --guidance, --eta, --seed and --samples say how models "
          f"draw, but {images} has its images already; leave them out")),
        (statistics is not None and classifier is None, "--statistics needs --classifier"),
        (data_root is not None and dataset is None, "--data-root needs --dataset"),
        (override is not None and classifier is None, "--override needs --classifier"),
        (second_classifier is not None and classifier is None,
         "second_classifier needs classifier, the first judge"),
        (real is not None and dataset is not None,
         "give the real images as --real or as --dataset, not both"),
        (has_real and inception is None, f"FID needs --inception FILE, {WEIGHTS_WANTED}"),
        (inception is not None and not has_real,
         "--inception needs real images: --real FOLDER, or --dataset NAME with --data-root"),
        (classifier is None and not has_real,
         "nothing to judge by; give --classifier, or real images and --inception"),
    ):  # fmt: skip
        if is_wrong:
            raise PeckerError(f"evaluate: {message}")
    place, ranks = torch.device(device), ranks or Ranks()
    if images is not None:
        if not ranks.is_first:
            return None  # images on disk are judged by the first process alone
        ranks, subject = Ranks(), _files(images)
    else:
        assert model is not None  # checked above
        subject = _model(model, per_class, steps, method, guidance, eta, seed)
    forget = subject.forgot if forget is None else forget
    if classifier is not None and forget is None:
        raise PeckerError("evaluate: --classifier needs --forget CLASS, the forgotten class")
    forgotten, instead = (None if c is None else subject.class_index(c) for c in (forget, override))
    name = None if forgotten is None else subject.class_names[forgotten]
    if forgotten is not None and instead == forgotten:
        raise PeckerError(
            f"evaluate: --forget and --override are the same class {name!r}; name another override "
            "or leave it out"
        )
    judges = Judge()

    def load() -> None:  # before hours of drawing: what is wrong with a file comes out now
        nonlocal judges
        shown = _read_real(real, dataset, data_root, download)
        judges = Judge.load(
            classifier, statistics, inception, shown, class_names=subject.class_names,
            model=subject.model, device=place, second=second_classifier,
        )  # fmt: skip
        if shown is not None:
            check_comparable(
                subject.shape, subject.class_names, subject.labels, subject.source, shown, name
            )

    ranks.first(load)
    judged = subject.draw(place, ranks, None if samples is None else Path(samples), force)
    if judged is None:
        return None  # the first process judges what all have drawn
    drawn, evaluation = None, None
    if subject.labels is not None:
        drawn = ImageSet(judged, subject.labels, subject.class_names, subject.source)
        if judges.classifier is not None and forgotten is not None:
            evaluation = judges.evaluation(drawn, forgotten, instead, subject.sampler, "judging")
            if subject.sampler is None:
                how = checked(_HowDrawn, subject.drawn, subject.source)
                evaluation = replace(
                    evaluation, sampler=how.description, steps=how.steps, seed=how.seed,
                    guidance=how.guidance,
                )  # fmt: skip
    return Judgement(
        source=subject.source,
        from_files=model is None,
        class_names=subject.class_names,
        forget=forgotten,
        drawn=subject.drawn,
        network="" if subject.model is None else fingerprint(subject.model.network),
        trained=subject.trained,
        evaluation=evaluation,
        fidelity=_fidelity(judges, judged, subject.source, drawn, name),
        machine=machine_facts(place),
        processes=ranks.size,
        versions=versions(),
    )


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """Images that are to be judged, or the model that draws them."""

    source: str  # the model folder, or where the images lie
    shape: tuple[int, ...]  # (C, H, W) of an image
    class_names: tuple[str, ...]  # by index; empty where the images have no classes
    labels: Tensor | None  # (N,) int64, what each image was asked to be; None without classes
    drawn: Mapping[str, Any]  # how the images are or were drawn, as far as that is known
    # The class that the model, or what drew the images, says it has forgotten, or None.
    forgot: str | None
    # How the model came about, as its folder says; nothing for images on disk.
    trained: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFolder | None = None  # draws them; None for images on disk
    sampler: Sampler | None = None  # how the model draws
    pixels: Tensor | None = None  # (N, C, H, W) uint8, of images on disk

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
        self.model.network.to(device)
        if folder is None:
            return self.sampler.pixels(self.model, self.labels, "sampling", ranks=ranks)
        plan = class_plan(self.model, self.source, self.sampler, self.labels)
        write_samples(folder, plan, ranks, "sampling", force)
        return read_back(folder, self.labels, "reading") if ranks.is_first else None


def _model(
    path: _Path,
    per_class: int | None,
    steps: int | None,
    method: Method | None,
    guidance: float | None,
    eta: float | None,
    seed: int | None,
) -> _Subject:
    model = ModelFolder.load(find_model(Path(path)))
    per_class = JUDGED_PER_CLASS if per_class is None else per_class
    if per_class < 2:
        raise PeckerError(f"evaluate: --per-class must be at least 2, got {per_class}")
    if steps is None:
        steps = default_steps(model.kind, method)
    sampler = Sampler(steps, seed or 0, method=method, guidance=guidance, eta=eta or 0.0)
    forgot = model.figures.get("forget")
    known = {k: v for k, v in model.figures.items() if k not in _LONG}
    labels = balanced_labels(model.num_classes, per_class)
    return _Subject(
        source=str(path),
        shape=model.image_shape,
        class_names=model.class_names,
        labels=labels,
        drawn={**sampler.settings(model, labels), "per_class": per_class},
        forgot=None if forgot is None else str(forgot),
        trained={"kind": model.kind, **known},
        model=model,
        sampler=sampler,
    )


def _files(path: _Path) -> _Subject:
    """Images on disk, with what is written beside them on how they were drawn."""
    files = load_image_files(path, progress="reading")
    drawn = files.provenance or {}
    sampler, drawer = drawn.get("sampler"), drawn.get("model")
    forgot = drawer.get("forgotten") if isinstance(drawer, dict) else None
    return _Subject(
        source=files.source,
        shape=tuple(files.images.shape[1:]),
        class_names=() if files.labels is None else with_classes(files).class_names,
        labels=files.labels,
        drawn={**drawn, **sampler} if isinstance(sampler, dict) else drawn,
        forgot=None if forgot is None else str(forgot),
        pixels=files.images,
    )


class _HowDrawn(Written):
    """What may be written beside images on disk."""

    description: str = "given images"
    steps: int = 0
    seed: int | None = None
    guidance: float = 0.0


def _fidelity(
    judge: Judge, images: Tensor, source: str, drawn: ImageSet | None, forget: str | None
) -> FidelityFigures | None:
    """FID and its like of (N, C, H, W) uint8, of the kept classes, or None without real ones.

    Without a class to forget all images are compared.
    """
    if judge.inception is None or judge.real is None:
        return None
    real, without = judge.real.images, ""
    if forget is not None and drawn is not None:
        images, real = kept_images(drawn, forget), kept_images(judge.real, forget)
        without = f", without {forget}"
    sources = source + without, judge.real.source + without
    return judge.inception.figures(images, sources[0], real, sources[1])


def _read_real(
    path: _Path | None, dataset: str | None, root: _Path | None, download: bool
) -> Images | None:
    """Real images of a folder, an .npz, or a data set; None where none are named."""
    if path is not None:
        return load_image_files(path, progress="reading")
    if dataset is None:
        return None
    split = PUBLISHED_SPLIT.get(dataset, "train")
    return load_images(dataset, None if root is None else Path(root), split, download=download)
