"""Whose face is it: a recogniser of the user's own, named as a Python object, and its figures.

The published judges of celebrities are programs of their own (GIPHY's detector, MACE's), so the one
that judges here is any object that does as `Recogniser` says. Naming it runs its code: it is given
as trusted:MODULE:OBJECT.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.defaults import TRUSTED
from pecker_fast.evaluate.detection import Images, in_batches
from pecker_fast.evaluate.intervals import Share
from pecker_fast.files import shown

__all__ = ["FaceRecogniser", "Recogniser", "RecognitionFigures"]

Faces = Sequence[Mapping[str, float]]
"""The faces in an image: of each, names and their probabilities."""


class Recogniser(Protocol):
    """Finds faces, or other things that have names, in images."""

    def __call__(self, images: Tensor) -> Sequence[Faces]:
        """The faces in each of the images (N, 3, H, W) in [0, 1]; an empty list where none is."""
        ...


@dataclass(frozen=True)
class RecognitionFigures:
    """What a recogniser sees in images, and whether it is what their prompts name."""

    image_count: int  # images that were looked at
    found: int  # images with a face
    label_count: int  # images with a face whose prompt has a label
    recognised: int  # of these, images whose surest face has the label as its most probable name
    # Mean over these of the label's probability, of the face that has most of it, as SA and SFD
    # report; None without such images.
    probability: float | None
    recogniser: str  # the object, as it was named

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON, with the shares and their 95 % intervals."""
        seen = Share(self.found, self.image_count)
        right = Share(self.recognised, self.label_count) if self.label_count else None
        return {
            **asdict(self),
            "found_share": seen.value,
            "found_interval": seen.interval,
            "recognised_share": None if right is None else right.value,
            "recognised_interval": None if right is None else right.interval,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Images with a face, and how often it is the label's."""
        rows = [("With a face", Share(self.found, self.image_count).counts)]
        if self.label_count:
            right = Share(self.recognised, self.label_count)
            rows += [
                ("Recognised", f"{right} of {self.label_count:,} with a face"),
                ("P(label given face)", f"{self.probability:.4f}"),
            ]
        return rows


@dataclass(frozen=True)
class FaceRecogniser:
    """A recogniser and its name, for errors."""

    recognise: Recogniser
    name: str

    @classmethod
    def load(cls, name: str) -> FaceRecogniser:
        """Load the object that `trusted:MODULE:OBJECT` names; a class is called once, bare.

        Raises:
            PeckerError: not named as trusted, no such module or object, or it cannot be called.
        """
        module, colon, attribute = name.removeprefix(TRUSTED).partition(":")
        if not name.startswith(TRUSTED) or not colon or not module or not attribute.isidentifier():
            raise PeckerError(
                f"recogniser {name}: judging with a Python object runs its code; if you trust it, "
                f"name it as {TRUSTED}MODULE:OBJECT"
            )
        try:
            found = getattr(importlib.import_module(module), attribute)
            made = found() if isinstance(found, type) else found
        except Exception as error:  # of whatever kind: it is the user's program
            reason = " ".join(str(error).split())[:300]
            raise PeckerError(
                f"recogniser {name}: cannot be loaded ({type(error).__name__}: {reason}); modules "
                "are looked for as Python does, also in the folders of PYTHONPATH"
            ) from error
        if not callable(made):
            raise PeckerError(
                f"recogniser {name}: is a {type(made).__name__}; expected a function of images "
                "(N, 3, H, W) in [0, 1] that gives the faces in each"
            )
        return cls(made, name)

    def measure(
        self, images: Images, prompts: Sequence[str], labels: Sequence[str | None]
    ) -> RecognitionFigures:
        """Recognise images (N, 3, H, W) in [0, 1], and compare with N labels, in whatever case.

        Raises:
            PeckerError: the recogniser fails, or gives something else than faces.
        """
        count = found = asked = right = 0
        probabilities: list[float] = []
        for batch in in_batches(images):
            for faces in _faces(self.recognise, batch, self.name):
                label = labels[count]
                count += 1
                found += bool(faces)
                if not faces or label is None:
                    continue
                asked += 1
                right += _surest(faces).casefold() == label.casefold()
                of_label = [
                    p for face in faces for n, p in face.items() if n.casefold() == label.casefold()
                ]
                probabilities.append(max(of_label, default=0.0))
        mean = sum(probabilities) / len(probabilities) if probabilities else None
        return RecognitionFigures(count, found, asked, right, mean, self.name)

    def namer(self, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """Whose the surest face is, in whatever case.

        Raises:
            PeckerError: as `measure`.
        """
        known = [name.casefold() for name in names]

        def seen(images: Tensor) -> Tensor:
            every = _faces(self.recognise, images, self.name)
            found = [_surest(faces).casefold() if faces else "" for faces in every]
            return torch.tensor([known.index(name) if name in known else -1 for name in found])

        return seen


def _surest(faces: Faces) -> str:
    surest = max(faces, key=lambda face: max(face.values(), default=0.0))
    return max(surest, key=lambda person: surest[person], default="")


@torch.no_grad()
def _faces(recogniser: Recogniser, images: Tensor, name: str) -> Sequence[Faces]:
    try:
        faces = [[dict(face) for face in each] for each in recogniser(images)]
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:300]
        raise PeckerError(
            f"recogniser {name}: failed on images {tuple(images.shape)} ({type(error).__name__}: "
            f"{reason})"
        ) from error
    good = len(faces) == len(images) and all(
        isinstance(person, str) and isinstance(p, (int, float)) and 0 <= p <= 1
        for each in faces
        for face in each
        for person, p in face.items()
    )
    if not good:
        raise PeckerError(
            f"recogniser {name}: gives {shown(faces)} for {len(images)} images; expected a list "
            "for each of them, with a mapping of names to probabilities for each face"
        )
    return faces
