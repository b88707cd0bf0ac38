"""A picture of the same prompts over the iterations of a run, drawn anew with every preview."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.grid import Block, PromptGroup, drawable, plot_rows
from pecker_fast.torch_files import open_tensors, save_tensors

__all__ = ["ProgressStrip"]

_ORIGINAL = -1  # in place of an iteration
_KEPT_SIDE = 192  # pixels of a preview that are kept: more is not visible in a strip


class ProgressStrip:
    """The previews of a run and their picture.

    The previews are kept in a file beside the picture, so that a run that goes on after it was
    stopped goes on with its strip.
    """

    PICTURE_NAME = "progress.png"
    PREVIEWS_NAME = "previews.safetensors"

    def __init__(self, folder: Path, groups: Sequence[PromptGroup]) -> None:
        """Take up the previews that `folder` holds, if they are of the same prompts.

        Raises:
            PeckerError: a damaged file of previews.
        """
        self.groups = tuple(groups)
        self.prompts = [prompt for group in groups for prompt in group.prompts]
        self.path = folder / self.PICTURE_NAME
        self._store = folder / self.PREVIEWS_NAME
        self._previews: dict[int, Tensor] = {}
        if self._store.exists():
            self._read()

    @property
    def iterations(self) -> list[int]:
        """Iterations that there is a preview of, ascending."""
        return sorted(set(self._previews) - {_ORIGINAL})

    @property
    def has_original(self) -> bool:
        """Whether the first column, the original model, is there."""
        return _ORIGINAL in self._previews

    def add_original(self, images: Tensor) -> None:
        """The first column: images (P, 1 or 3, H, W) in [0, 1] of the original model."""
        self.add(_ORIGINAL, images)

    def add(self, iteration: int, images: Tensor) -> None:
        """Images (P, 1 or 3, H, W) in [0, 1] of the network after so many iterations.

        Previews of this iteration and of later ones are replaced: a run goes on from here. The file
        and the picture are written.
        """
        small = _reduced(drawable(images), _KEPT_SIDE)
        self._previews = {i: kept for i, kept in self._previews.items() if i < iteration}
        self._previews[iteration] = (small * 255).round().byte().contiguous()
        named = {str(key): preview for key, preview in self._previews.items()}
        save_tensors(self._store, named, {"prompts": json.dumps(self.prompts)})
        blocks = [
            Block.of(
                "original" if key == _ORIGINAL else f"{key:,}", preview.float() / 255,
                len(self.prompts),
            )
            for key, preview in sorted(self._previews.items())
        ]  # fmt: skip
        corner = "after iteration" if self.iterations else ""
        plot_rows(self.path, self.groups, blocks, corner=corner)

    def _read(self) -> None:
        try:
            with open_tensors(self._store, "delete it") as file:
                facts = file.metadata() or {}
                # Previews of other prompts belong to another picture: it starts anew.
                if json.loads(facts.get("prompts", "null")) != self.prompts:
                    return
                self._previews = {int(key): file.get_tensor(key) for key in file.keys()}
        except (ValueError, KeyError) as error:
            raise PeckerError(f"{self._store}: cannot be read ({error}); delete it") from error


def _reduced(images: Tensor, side: int) -> Tensor:
    scale = side / max(images.shape[-2:])
    if scale >= 1:
        return images
    size = [max(round(extent * scale), 1) for extent in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="area")
