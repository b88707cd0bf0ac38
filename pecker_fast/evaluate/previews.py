"""What an erasure of concepts shows: previews while it runs, pictures at its end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.grid import Block, PromptGroup, plot_rows
from pecker_fast.evaluate.page import Picture
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.directory import PICTURE_NAMES
from pecker_fast.torch_files import open_tensors, save_tensors

__all__ = ["ORIGINAL", "Previews", "ProgressStrip", "prompt_groups"]

T = TypeVar("T")

_COLUMNS = 4  # images of each prompt in the before/after picture
ORIGINAL = -1  # the original model, in place of an iteration of the strip
_KEPT_SIDE = 192  # pixels of a preview that are kept: more is not visible in a strip


def prompt_groups(conditions: TextConditions) -> list[PromptGroup]:
    """The prompts that are shown: what is forgotten, its override, the rest."""
    pairs = [pair for concept in conditions.concepts for pair in _spread(concept, 3)]
    groups = [
        PromptGroup("to forget", tuple(pair.forget for pair in pairs[:3]), True),
        PromptGroup("in its place", tuple(pair.override or " " for pair in pairs[:2])),
        PromptGroup("to keep", tuple(_spread(conditions.remain, 3))),
    ]
    return [group for group in groups if group.prompts]


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


class Previews:
    """Draws the same prompts from the same noise by the original and by the erased model."""

    def __init__(
        self,
        pipeline: PipelineFolder,
        config: Any,
        groups: Sequence[PromptGroup],
        out: Path,
        device: torch.device,
        steps: int,
        erased_steps: int = 1,
        *,
        look_steps: int = 1,
    ) -> None:
        """Prepare; nothing is drawn or loaded yet. `config` is that of a run with prompts.

        The original model takes `steps`, the erased one `erased_steps`, and `look_steps` while it
        is trained.
        """
        self.groups = groups
        self.prompts = [prompt for group in groups for prompt in group.prompts]
        text, diffusion = config.text, getattr(config, "diffusion", None)  # of a distillation
        guidance = 1.0 if text is None else text.guidance.kappa4
        # What keeps its steps is asked without a negative prompt, and shown beside the like.
        negative = "" if text is None or erased_steps > 1 else text.negative.forget.kappa4
        start = None if diffusion is None else diffusion.t_init
        start = Sampler(t_init=start).start(pipeline)
        self._pipeline, self._out, self._device = pipeline, out, device
        self._strip: ProgressStrip | None = None
        self.before = Sampler(steps, config.seed, start, guidance=guidance, negative=negative)
        self.after, self._look = (
            Sampler(count, config.seed, start, guidance=guidance if count > 1 else None)
            for count in (erased_steps, look_steps)
        )

    @property
    def strip(self) -> ProgressStrip:
        """The strip in the run directory, which only the first process reads and writes."""
        if self._strip is None:
            self._strip = ProgressStrip(self._out, self.groups)
        return self._strip

    def show(self, network: nn.Module, iteration: int, ranks: Ranks) -> None:
        """Add the network as it is to the strip, whose first column is the original model.

        All processes make this call and draw a share of the images.

        Raises:
            PeckerError: the first process cannot read or write the strip.
        """
        if not ranks.first(lambda: ORIGINAL in self.strip.iterations):
            original = self.original(self.prompts, ranks)
            ranks.first(lambda: self.strip.add(ORIGINAL, original))
        images = self.look(network, self.prompts, ranks)
        ranks.first(lambda: self.strip.add(iteration, images))

    def original(self, texts: Sequence[str], ranks: Ranks) -> Tensor:
        """Draw an image of each text by the original model, (N, 3, H, W) in [0, 1].

        All of them on the first process, none on the others.
        """
        network = self._pipeline.network.to(self._device)
        found = self._drawn(self.before, network, texts, ranks, "original model")
        network.to("cpu")
        return found

    def erased(self, network: nn.Module, texts: Sequence[str], ranks: Ranks) -> Tensor:
        """Draw the same by an erased network, from the same noise."""
        progress = "erased model" if self.after.steps > 1 else None
        return self._drawn(self.after, network, texts, ranks, progress)

    def look(self, network: nn.Module, texts: Sequence[str], ranks: Ranks) -> Tensor:
        """Draw the same by a network in training, in fewer steps."""
        return self._drawn(self._look, network, texts, ranks)

    def _drawn(
        self,
        sampler: Sampler,
        network: nn.Module,
        texts: Sequence[str],
        ranks: Ranks,
        progress: str | None = None,
    ) -> Tensor:
        training = network.training
        images = sampler.sample(
            self._pipeline, texts, progress, network=network.eval(), ranks=ranks
        )
        network.train(training)
        return torch.empty(0, *self._pipeline.image_shape) if images is None else images / 2 + 0.5

    def pictures(self, before: Tensor, after: Tensor) -> list[Picture]:
        """Plot images of `texts`, on the first process; with the strip, if there is one."""
        path = self._out / PICTURE_NAMES[0]
        blocks = [
            Block(f"{title} model, {sampler.describe()}", torch.split(images, _COLUMNS))
            for title, sampler, images in (
                ("Before: original", self.before, before),
                ("After: erased", self.after, after),
            )
        ]
        plot_rows(path, self.groups, blocks)
        words = (
            "Left the original model, right the erased one, from the same noise. Marked are the "
            "prompts that name what was to be forgotten."
        )
        found = [Picture(path.read_bytes(), "Before and after", words)]
        if self.strip.iterations:
            words = f"Images of the same prompts by {self._look.describe()} as the run went on."
            found.append(Picture(self.strip.path.read_bytes(), "While it ran", words))
        return found

    @property
    def texts(self) -> list[str]:
        """The prompts of the picture before and after, several times each."""
        return [prompt for prompt in self.prompts for _ in range(_COLUMNS)]


def _spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items, or all, from the whole list.

    Prompts are often products of phrases, of which an even step would meet the same ones again.
    """
    step = max(round(0.382 * len(items)), 1)
    while math.gcd(step, len(items)) > 1:
        step += 1
    return [items[index * step % len(items)] for index in range(min(count, len(items)))]
