"""Finding the mask of a class without erasing it, and what that mask saves: `pecker-fast mask`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pecker_fast.distill.config import PeckerConfig
from pecker_fast.erasure.api import class_task
from pecker_fast.erasure.request import Request
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models import ModelFolder
from pecker_fast.models.weights import of_variant
from pecker_fast.nn.flops import NetworkFlops, count_flops
from pecker_fast.runs.digest import fingerprint
from pecker_fast.runs.dry_run import naming_settings

__all__ = ["ClassMask", "describe_backward", "mask_of_class"]


@dataclass(frozen=True)
class ClassMask:
    """The mask that a run would find."""

    mask: SaliencyMask
    forget: str  # name of the class
    kind: str  # saliency, random or full
    note: str  # a line on what it saves, or what it was found on
    model: str  # digest of the network that it was found on

    def save(self, out: Path) -> Path:
        """Write the file `out`, and beside it a picture of the density by layer; returns that."""
        self.mask.save(out, model=self.model)
        plot = out.with_suffix(".png")
        self.mask.plot(plot)
        return plot


def mask_of_class(request: Request) -> ClassMask:
    """Find which parameters of a model matter for forgetting a class; nothing is written.

    Args:
        request: its `model`, classes, configuration, images and `device` count.

    Raises:
        PeckerError: whatever cannot be used, or a configuration that forgets no class.

    Example:
        >>> from pecker_fast_demo import teacher_folder
        >>> classes = {"forget": "Bag", "overrides": ["Coat"], "settings": {"mask.kind": "random"}}
        >>> request = Request(out=Path("m.safetensors"), model=teacher_folder(), **classes)
        >>> round(mask_of_class(request).mask.density, 2)
        0.5
    """
    # Nobody judges, so nothing ends the run early.
    request = replace(request.fetched(), settings={**request.settings, "until": None})
    with of_variant(request.variant):
        task = class_task(request)
    if not task.pairs:
        raise PeckerError("mask: the configuration forgets no class; give --forget")
    if isinstance(task.config, PeckerConfig):  # a recipe's second stage has the same mask
        task = task.tried({"first_stage": "none"}, lambda network: network)
    with naming_settings(task.config):
        found = task.start(None).mask
    name = ", ".join(task.model.class_names[index] for index, _ in task.pairs)
    if isinstance(task.config, PeckerConfig):
        said = _backward(task.model, found, task.config)
    else:
        said = f"found on {name} in {task.images or 'images of the model itself'}"
    return ClassMask(found, name, task.config.mask.kind, said, fingerprint(task.original))


def _backward(model: ModelFolder, mask: SaliencyMask, config: PeckerConfig) -> str:
    """A line with the FLOPs that the mask saves, or with the reason why they cannot be counted."""
    zero = torch.zeros(1, dtype=torch.int64, device="meta")

    def forward(network: nn.Module, image: Tensor) -> Tensor:
        return model.architecture.call(network, image, zero, zero)

    try:
        flops = count_flops(model.network, mask, forward, model.network_shape)
    except PeckerError as error:
        return f"backward of the generator: {error}"
    return describe_backward(flops, mask, config)


def describe_backward(flops: NetworkFlops, mask: SaliencyMask, config: PeckerConfig) -> str:
    """How much of a backward pass is skipped, and its share of an iteration."""
    unit, size = ("GFLOP", 1e9) if flops.full.total >= 1e9 else ("MFLOP", 1e6)
    learning = 2 if config.mask.apply == "both" else 1
    saved = 1 - flops.iteration(learning) / flops.iteration()
    line = (
        f"backward of the generator: {flops.masked.total / size:,.1f} of "
        f"{flops.full.total / size:,.1f} {unit} an image ({flops.skipped:.1%} skipped); of an "
        f"iteration: {saved:.1%}"
    )
    if flops.skipped or mask.density == 1 or mask.granularity in ("out_channel", "tensor"):
        return line
    return f"{line}; mask.granularity out_channel or tensor can skip some"
