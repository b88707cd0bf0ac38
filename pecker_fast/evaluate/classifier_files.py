"""A classifier as a folder on disk: config.json says what it is, model.safetensors what it learnt.

`pecker-fast train-classifier` puts two more files beside them: the statistics of real images in the
classifier's features, and a card with what it was trained on and how good it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import read_json, write_text
from pecker_fast.torch_files import save_tensors

__all__ = [
    "ACCEPTED",
    "CARD_NAME",
    "CONFIG_NAME",
    "STATISTICS_NAME",
    "WEIGHTS_NAME",
    "SavedClassifier",
    "check_classes",
    "check_outputs",
    "check_sizes",
    "known_classes",
    "published_weights",
    "read_config",
    "statistics_beside",
]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
STATISTICS_NAME = "statistics.safetensors"
CARD_NAME = "card.json"
IMAGENET_CLASSES = 1000

ACCEPTED = (
    f"a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or the state dict of torchvision's resnet34 "
    "that train_classifier.py of SA, SalUn or SFD saves"
)
"""What a classifier may be, for messages."""

M = TypeVar("M", bound="SavedClassifier")


class SavedClassifier(nn.Module):
    """A classifier of images (N, C, H, W) in [-1, 1] that its arguments and weights make up.

    Attributes:
        arch: what config.json calls it; None where it says nothing.
        config: the constructor's arguments.
        num_classes: number of classes.
        in_channels: C.
    """

    arch: ClassVar[str | None] = None

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config
        self.num_classes: int = config["num_classes"]
        self.in_channels: int = config["in_channels"]

    @property
    def early(self) -> nn.Module:
        """A layer before the last ones, whose output (N, F', H', W') holds more than the classes.

        The last features collapse towards one point a class; what differs within a class is seen
        here. See `forgetting.classify_with_early`.
        """
        raise NotImplementedError

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to logits (N, num_classes) and features (N, F) in one pass.

        Raises:
            PeckerError: images of another shape.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits (N, num_classes)."""
        return self.logits_and_features(images)[0]

    def check(self, images: Tensor) -> None:
        """Refuse images that are not (N, in_channels, H, W)."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise PeckerError(
                f"classifier: images must be (N, {self.in_channels}, H, W), "
                f"got {tuple(images.shape)}"
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into `folder`, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_tensors(folder / WEIGHTS_NAME, weights)
        config = self.config if self.arch is None else {"arch": self.arch, **self.config}
        write_text(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls: type[M], folder: str | os.PathLike[str]) -> M:
        """Read what `save` wrote; the result is in eval mode and asks for no gradients.

        Raises:
            PeckerError: a file is missing, truncated, or does not fit the configuration.
        """
        folder = Path(folder)
        config = read_config(folder, cls.__name__)
        arch = config.pop("arch", None)
        if arch != cls.arch:
            raise PeckerError(f"classifier {folder}: arch must be {cls.arch}, got {arch!r}")
        try:
            network = cls(**config)
        except (TypeError, ValueError, RuntimeError, MemoryError) as error:
            raise PeckerError(_not_a_config(folder / CONFIG_NAME, cls.__name__, error)) from error
        path = folder / WEIGHTS_NAME
        try:
            weights = load_file(path)
            network.load_state_dict(weights)
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")
            raise PeckerError(
                f"classifier {path}: cannot be read, truncated or of another network "
                f"({reason}); copy the file again"
            ) from error
        for name, value in network.state_dict().items():
            # load_state_dict would make numbers of whatever is there.
            if weights[name].is_floating_point() != value.is_floating_point():
                raise PeckerError(
                    f"classifier {path}: {name} is {weights[name].dtype}, expected {value.dtype}; "
                    "copy the file again"
                )
            if not value.isfinite().all():
                raise PeckerError(
                    f"classifier {path}: {name} holds NaN or infinity; train the classifier again"
                )
        return network.eval().requires_grad_(False)


def check_sizes(classifier: SavedClassifier, **sizes: Any) -> None:
    """Refuse arguments, which may come from a file, that are no whole numbers above 0."""
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise PeckerError(
                f"{type(classifier).__name__}: {name} must be a whole number of at least 1, got "
                f"{value!r}"
            )


def read_config(folder: Path, kind: str = "classifier") -> dict[str, Any]:
    """What config.json in `folder` holds; both files are there.

    Raises:
        PeckerError: a file is missing, or config.json is no JSON object; `kind` says of what.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise PeckerError(f"classifier {folder}: {name} is missing; expected {ACCEPTED}")
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PeckerError(_not_a_config(path, kind, error)) from error
    if not isinstance(config, dict):
        raise PeckerError(_not_a_config(path, kind, f"a {type(config).__name__}"))
    return config


def published_weights(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file that torch.save wrote, or in a checkpoint; runs no code from it.

    Raises:
        PeckerError: there is none, or the file is broken or something else.
    """
    # It imports diffusers, which takes seconds and no other classifier needs.
    from pecker_fast.models.published import read_checkpoint

    try:
        checkpoint = read_checkpoint(path)
    except PeckerError as error:
        raise PeckerError(f"classifier {error}; a classifier is {ACCEPTED}") from error
    return checkpoint.slots[checkpoint.choose()]


def check_outputs(path: Path, outputs: int, class_names: Sequence[str]) -> None:
    """Compare the outputs of a classifier without a card with the classes that it is to judge.

    Raises:
        PeckerError: fewer outputs than classes; or ImageNet's, which no model here has.
    """
    count = len(class_names)
    if outputs < count:
        raise PeckerError(
            f"classifier {path}: {outputs} classes, but what it is to judge has {count}; give a "
            "classifier trained on the same classes, in the same order"
        )
    if 0 < count < outputs == IMAGENET_CLASSES:
        raise PeckerError(
            f"classifier {path}: {outputs:,} classes, but what it is to judge has {count}: these "
            "are weights of ImageNet, to start from; give what `pecker-fast train-classifier "
            f"--pretrained {path}` makes of them"
        )


def statistics_beside(classifier: str | os.PathLike[str]) -> Path | None:
    """The statistics that were written with a classifier, None where there are none."""
    path = Path(classifier) / STATISTICS_NAME
    return path if os.path.lexists(path) else None  # what is no file is refused, not passed over


def check_classes(classifier: str | os.PathLike[str], class_names: Sequence[str]) -> None:
    """Compare the classes that are to be judged with those that a classifier was trained on.

    Case does not matter, a classifier may know more, and a classifier without a card, or classes
    that are called "class 0" and so on since nobody knows their names, are not compared.

    Raises:
        PeckerError: they differ; or the card cannot be read.
    """
    for label, (theirs, ours) in enumerate(
        zip(known_classes(classifier), class_names, strict=False)
    ):
        if ours.lower() not in (theirs.lower(), f"class {label}"):
            raise PeckerError(
                f"classifier {classifier}: label {label} is {theirs!r} there, but {ours!r} in what "
                "it is to judge; give a classifier of the same classes in the same order"
            )


def known_classes(classifier: str | os.PathLike[str]) -> list[str]:
    """The classes on a classifier's card; none without a card.

    Raises:
        PeckerError: the card cannot be read.
    """
    path = Path(classifier) / CARD_NAME
    if not os.path.lexists(path):
        return []
    try:
        known = read_json(path)["class_names"]
        if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
            raise ValueError("class_names is no list of names")
        return known
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PeckerError(
            f"classifier {path}: cannot be read ({error}); train the classifier again, or delete "
            "the file where its classes are known to be right"
        ) from error


def _not_a_config(path: Path, kind: str, reason: object) -> str:
    return f"classifier {path}: not a {kind} configuration ({reason}); save the classifier again"
