"""Finding the mask of a class without erasing it, and what that mask saves: `pecker-fast mask`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pecker_fast.distill.conditions import ClassConditions
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.mask_finding import find_mask
from pecker_fast.distill.objective import Objective
from pecker_fast.distributed import Ranks
from pecker_fast.erasure.api import real_images
from pecker_fast.erasure.overrides import with_overrides
from pecker_fast.erasure.request import Request
from pecker_fast.erasure.several import Pairs
from pecker_fast.erasure.starts import load_original
from pecker_fast.errors import PeckerError
from pecker_fast.machine import usable_device
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.trainer import method_objective
from pecker_fast.models import ModelFolder
from pecker_fast.models.weights import of_variant
from pecker_fast.nn.flops import NetworkFlops, count_flops
from pecker_fast.nn.winograd import running_winograd
from pecker_fast.runs.config import MaskedConfig
from pecker_fast.runs.digest import fingerprint
from pecker_fast.runs.dry_run import naming_settings

__all__ = ["ClassMask", "describe_backward", "mask_of_class"]


@dataclass(frozen=True)
class ClassMask:
    """The mask that a run would find.

    Attributes:
        mask: itself.
        forget: name of the class.
        kind: saliency, random or full.
        note: a line on what it saves, or what it was found on.
        model: digest of the network that it was found on.
    """

    mask: SaliencyMask
    forget: str
    kind: str
    note: str
    model: str

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
    config = request.read_config()
    device = usable_device(request.device)
    request = request.fetched()
    assert request.model is not None
    with of_variant(request.variant):
        model = load_original(request.model)
    model.network.to(device)
    config = with_overrides(config, model, None, device)
    if isinstance(config, BaselineConfig):
        return _of_method(model, config, request)
    if config.forget is None:
        raise PeckerError("mask: the configuration forgets no class; give --forget")
    objective = Objective.from_model(model, config)
    classes = objective.conditions
    assert isinstance(classes, ClassConditions)
    with naming_settings(config), _as_in_a_run(objective.teacher, config):
        found = find_mask(objective, progress=True)
    name = _names(model, classes.pairs)
    note, digest = _backward(model, objective, found), fingerprint(model.network)
    return ClassMask(found, name, config.mask.kind, note, digest)


def _as_in_a_run(
    network: nn.Module, config: MaskedConfig
) -> contextlib.AbstractContextManager[None]:
    """With the convolutions of a run, which finds the same mask to the bit."""
    return running_winograd(network) if config.accelerate else contextlib.nullcontext()


def _of_method(model: ModelFolder, config: BaselineConfig, request: Request) -> ClassMask:
    """As a method finds it: from real images, or those that the model draws."""
    images, source = None, "images of the model itself"
    if not config.data_free:
        config, images = real_images(request, config, Ranks())
        source = images.source
    objective = method_objective(model, config, images)
    network = model.network.requires_grad_(True)
    with naming_settings(config), _as_in_a_run(network, config):
        found = objective.find_mask(network, progress=True)
    name = _names(model, objective.pairs)
    note, digest = f"found on {name} in {source}", fingerprint(model.network)
    return ClassMask(found, name, config.mask.kind, note, digest)


def _names(model: ModelFolder, pairs: Pairs) -> str:
    return ", ".join(model.class_names[index] for index, _ in pairs)


def _backward(model: ModelFolder, objective: Objective, mask: SaliencyMask) -> str:
    """A line with the FLOPs that the mask saves, or with the reason why they cannot be counted."""
    zero = torch.zeros(1, dtype=torch.int64, device="meta")

    def forward(network: nn.Module, image: Tensor) -> Tensor:
        return model.architecture.call(network, image, zero, zero)

    try:
        flops = count_flops(objective.teacher, mask, forward, objective.sample_shape)
    except PeckerError as error:
        return f"backward of the generator: {error}"
    return describe_backward(flops, mask, objective.config)


def describe_backward(flops: NetworkFlops, mask: SaliencyMask, config: PeckerConfig) -> str:
    """How much of a backward pass is skipped, which part of it, and its share of an iteration."""
    full, masked = flops.full, flops.masked
    unit, size = ("GFLOP", 1e9) if full.total >= 1e9 else ("MFLOP", 1e6)
    line = (
        f"backward of the generator: {masked.total / size:,.1f} of {full.total / size:,.1f} {unit} "
        "an image"
    )
    if masked.total == full.total:
        line += f": this mask ({mask.granularity}, density {mask.density:.4g}) skips no arithmetic"
        structured = mask.granularity in ("out_channel", "tensor") or mask.density == 1
        return line if structured else f"{line}; mask.granularity out_channel or tensor can"
    weights = (full.weight_gradients - masked.weight_gradients) / full.total
    below = (full.input_gradients - masked.input_gradients) / full.total
    learning = 2 if config.mask.apply == "both" else 1
    return (
        f"{line} ({flops.skipped:.1%} skipped: weight gradients {weights:.1%}, layers below the "
        f"earliest salient one {below:.1%}); of an iteration: "
        f"{1 - flops.iteration(learning) / flops.iteration():.1%}"
    )
