"""A picture of the same prompts over the iterations of a run, drawn anew with every preview."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.grid import Block, PromptGroup, plot_rows
from pecker_fast.torch_files import open_tensors, save_tensors

__all__ = ["ORIGINAL", "ProgressStrip"]

ORIGINAL = -1  # the original model, in place of an iteration
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
        self.groups = groups
        self.path = folder / self.PICTURE_NAME
        self._store = folder / self.PREVIEWS_NAME
        self._prompts = json.dumps([prompt for group in groups for prompt in group.prompts])
        self._previews: dict[int, Tensor] = {}
        if not self._store.exists():
            return
        try:
            with open_tensors(self._store, "delete it") as file:
                # Previews of other prompts belong to another picture: it starts anew.
                if (file.metadata() or {}).get("prompts") == self._prompts:
                    self._previews = {int(key): file.get_tensor(key) for key in file.keys()}
        except (ValueError, KeyError) as error:
            raise PeckerError(f"{self._store}: cannot be read ({error}); delete it") from error

    @property
    def iterations(self) -> list[int]:
        """Iterations that there is a preview of, ascending; `ORIGINAL` first."""
        return sorted(self._previews)

    def add(self, iteration: int, images: Tensor) -> None:
        """Add a column: images (P, 1 or 3, H, W) in [0, 1] after so many iterations, or `ORIGINAL`.

        Previews of this iteration and of later ones are replaced: a run goes on from here. The file
        and the picture are written.
        """
        small = images.detach().float().cpu().nan_to_num(0.0)
        if max(small.shape[-2:]) > _KEPT_SIDE:
            scale = _KEPT_SIDE / max(small.shape[-2:])
            size = [max(round(side * scale), 1) for side in small.shape[-2:]]
            small = F.interpolate(small, size=size, mode="area")
        self._previews = {i: kept for i, kept in self._previews.items() if i < iteration}
        self._previews[iteration] = (small * 255).round().byte().contiguous()
        named = {str(key): preview for key, preview in self._previews.items()}
        save_tensors(self._store, named, {"prompts": self._prompts})
        blocks = [
            Block("original" if key == ORIGINAL else f"{key:,}", torch.split(preview / 255, 1))
            for key, preview in sorted(self._previews.items())
        ]
        plot_rows(self.path, self.groups, blocks, "after iteration" if iteration >= 0 else "")
