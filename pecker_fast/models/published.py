"""Checkpoints of SA, SalUn, SFD and EraseDiff, read into `DDPMUNet` without running code from them.

What their files hold, a list by position (`None` where a short-lived SFD checkpoint drops it)::

    [network, optimizer, step, EMA]                                  a trained or an unlearnt DDPM
    [network, optimizer, epoch, step, EMA]                           the DDIM code they come from
    [psi, optimizer, theta, optimizer, step, EMA of theta]           distilled by SFD

or a dictionary with a name for each, or the network alone, also as safetensors. EMA may be missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, shown
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.weights import FLOATS, first_line, mismatch
from pecker_fast.torch_files import check_stored, load_torch, open_tensors

__all__ = [
    "CLASS_NAMES",
    "SLOTS",
    "T_INIT",
    "PublishedCheckpoint",
    "network_from",
    "published_scheduler",
    "read_checkpoint",
]

CLASS_NAMES = {
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer",
        "dog", "frog", "horse", "ship", "truck",
    ),
    "stl10": (
        "airplane", "bird", "car", "cat", "deer",
        "dog", "horse", "monkey", "ship", "truck",
    ),
}  # fmt: skip
"""By label, in the data sets' own order."""

SLOTS = ("ema", "model", "generator", "pseudo-score")
"""What a checkpoint may hold. `ema` is of the model, or of the generator in a distilled one."""

T_INIT = 440
"""The time step that SFD's generators are told."""

# Keys of dictionaries, by slot.
_KEYS = {
    "ema": ("ema", "model_ema", "ema_model", "ema_state_dict", "shadow"),
    "model": ("model", "state_dict", "model_state_dict", "net", "network"),
    "generator": ("generator", "g_model", "G"),
    "pseudo-score": ("sg_model", "pseudo_score", "fake_score"),
}
_MOST_LEVELS = 16
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile

_Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class PublishedCheckpoint:
    """The networks in one file; optimizers are left out."""

    path: Path
    # State dicts by name, one of `SLOTS` each, prefixes removed. Not all are there.
    slots: Mapping[str, _Weights]
    step: int | None  # the training step it says it was written after; None: it does not say

    @property
    def is_distilled(self) -> bool:
        """Whether it holds a one-step generator and its pseudo-score network, not a teacher."""
        return "generator" in self.slots

    def choose(self, slot: str | None = None) -> str:
        """The slot to take: the one asked for, else the EMA, else the network itself.

        Raises:
            PeckerError: the file does not have it.
        """
        if slot is None:
            return next(name for name in SLOTS if name in self.slots)
        if slot not in self.slots:
            raise PeckerError(f"{self.path}: has no slot {slot!r}; it has {', '.join(self.slots)}")
        return slot

    def is_generator(self, slot: str) -> bool:
        """Whether the network in a slot makes an image in one step."""
        return self.is_distilled and slot in ("ema", "generator")

    def network(self, slot: str | None = None, *, sample_size: int | None = None) -> DDPMUNet:
        """The network in a slot (None: as `choose` says), in eval mode, float32.

        Raises:
            PeckerError: no such slot, or another architecture.
        """
        chosen = self.choose(slot)
        return network_from(
            self.slots[chosen], f"{self.path}, slot {chosen}", sample_size=sample_size
        )


def read_checkpoint(path: str | os.PathLike[str]) -> PublishedCheckpoint:
    """Read a checkpoint, without running code that it may contain.

    Raises:
        PeckerError: no file, a truncated one, one that is not a checkpoint, one that would have
            to run code to be read, one without a network, or with tensors that are not all there.
    """
    path = Path(path)
    content = _read(path)
    if isinstance(content, Sequence) and not isinstance(content, str):
        slots, step = _slots_of_list(content)
    elif isinstance(content, Mapping):
        slots, step = _slots_of_dict(content)
    else:
        slots, step = {}, None
    if not slots:
        raise PeckerError(
            f"{path}: no network in it; expected a state dict or the list [network, optimizer, "
            f"step, EMA], found {shown(content)}"
        )
    for weights in slots.values():
        for name, weight in weights.items():
            check_stored(name, weight, path)
    return PublishedCheckpoint(path, {n: slots[n] for n in SLOTS if n in slots}, step)


def network_from(weights: _Weights, source: str, *, sample_size: int | None = None) -> DDPMUNet:
    """Build the network that a state dict belongs to, its sizes read off the shapes.

    Args:
        weights: by name, without prefixes.
        source: names it in errors.
        sample_size: of the images, which no weight tells. None: so that attention is at 16x16, as
            published; 32 where there is none.

    Returns:
        The network in eval mode, float32, holding a copy of the weights.

    Raises:
        PeckerError: another architecture, saying what is missing, unexpected or of another shape;
            or a weight that is empty, not finite or no float.
    """
    for name, weight in weights.items():
        if weight.dtype not in FLOATS.values() or not weight.numel() or not weight.isfinite().all():
            raise PeckerError(
                f"{source}: {shown(name)} is {weight.dtype} {tuple(weight.shape)}, or holds NaN or "
                "infinity; expected finite floats of 16 bits or more: take an earlier checkpoint"
            )
    try:
        sizes = _sizes(weights)
        attention: tuple[int, ...] = sizes["attention_levels"]
        if sample_size is None:
            sample_size = 16 << attention[0] if len(attention) == 1 else 32
        with torch.device("meta"):
            network: DDPMUNet = DDPMUNet(**sizes, sample_size=sample_size)
    except (PeckerError, LookupError, ArithmeticError, ValueError) as error:
        raise PeckerError(
            f"{source}: another architecture or image size ({first_line(error)}); {_kind(weights)}"
        ) from error
    expected = {name: tuple(param.shape) for name, param in network.state_dict().items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != expected:
        raise PeckerError(f"{source}: another architecture, {mismatch(expected, found)}")
    network.to_empty(device="cpu").load_state_dict(weights)
    network.eval()
    return network


def published_scheduler() -> DDPMScheduler:
    """The noise schedule of all four repositories: linear betas, epsilon, nothing clipped."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="epsilon",
        variance_type="fixed_large",
        clip_sample=False,
    )


def _read(path: Path) -> Any:
    """What `torch.load` makes of the file with `weights_only=True`, on the CPU."""
    if not path.is_file():
        raise PeckerError(f"{path}: no such file; expected a checkpoint, such as ckpts/ckpt.pth")
    with open(path, "rb") as file:
        if file.read(9)[8:] == b"{":  # a JSON header behind its length
            with open_tensors(path) as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}
    try:
        return load_torch(path)
    except (PeckerError, MemoryError):
        raise
    except Exception as error:  # torch raises many kinds for a broken file
        # What torch says before that is how to run the code after all.
        reason = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
        raise PeckerError(
            f"{path}: cannot be read without running code from it, or is truncated; where you "
            "trust it, load it as `x` in a container without a network; write a list as "
            "`torch.save([s if isinstance(s, dict) else None for s in x], 'weights.pth')`, which "
            "keeps the EMA, or a network as `torch.save(x.state_dict(), 'weights.pth')` "
            f"({' '.join(reason.split())[:100]})"
        ) from error


def _slots_of_list(content: Sequence[Any]) -> tuple[dict[str, _Weights], int | None]:
    networks = {i: _plain_names(item) for i, item in enumerate(content) if _is_network(item)}
    numbers = [item for item in content if _is_step(item)]
    if not networks:
        return {}, None
    last = len(content) - 1
    slots: dict[str, _Weights] = {}
    # Only SFD's distillation has a network in the third place that is not the last.
    if len(content) > 4 and 2 in networks:
        names = {0: "pseudo-score", 2: "generator"}
    else:
        names = {0: "model"}
    if last not in names:
        names[last] = "ema"
    slots = {names[i]: network for i, network in networks.items() if i in names}
    return slots, numbers[-1] if numbers else None


def _slots_of_dict(content: Mapping[Any, Any]) -> tuple[dict[str, _Weights], int | None]:
    if _is_network(content):
        return {"model": _plain_names(content)}, None
    slots = {
        slot: _plain_names(content[key])
        for slot, keys in _KEYS.items()
        for key in keys
        if _is_network(content.get(key))
    }
    steps = (content.get(key) for key in ("step", "global_step", "iteration"))
    return slots, next((step for step in steps if _is_step(step)), None)


def _is_step(item: Any) -> bool:
    return type(item) is int and 0 <= item < 1 << 63


def _is_network(item: Any) -> bool:
    """Whether it is a state dict: names and tensors, which an optimizer's is not."""
    return (
        isinstance(item, Mapping)
        and bool(item)
        and all(isinstance(name, str) for name in item)
        and all(isinstance(value, Tensor) for value in item.values())
    )


def _plain_names(weights: _Weights) -> _Weights:
    """Without the prefixes that wrappers put before every name."""
    for prefix in _PREFIXES * 2:  # they may be nested, in either order
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _sizes(weights: _Weights) -> dict[str, Any]:
    """The configuration of the network that has such weights; any error where none has."""

    def count(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return len({found[1] for name in weights if (found := pattern.match(name))})

    channels, in_channels, *_ = weights["conv_in.weight"].shape
    levels = range(count("down"))
    if len(levels) > _MOST_LEVELS:
        raise ValueError(f"{len(levels)} levels")
    widths = [weights[f"down.{level}.block.0.conv1.weight"].shape[0] for level in levels]
    if uneven := [width for width in widths if width % channels]:
        raise ValueError(
            f"a level of {uneven[0]} channels is no multiple of the base width {channels}"
        )
    return {
        "in_channels": in_channels,
        "num_classes": weights["classes_emb.weight"].shape[0],
        "channels": channels,
        "channel_mult": tuple(width // channels for width in widths),
        "attention_levels": tuple(level for level in levels if count(f"down.{level}.attn")),
        "blocks_per_level": count("down.0.block"),
        "null_class": "null_classes_emb" in weights,
    }


def _kind(weights: _Weights) -> str:
    """What a state dict of another architecture is, as far as its names tell."""
    if any(name.startswith(("down_blocks.", "model.diffusion_model.")) for name in weights):
        return (
            "it looks like a diffusers or Stable Diffusion network: give the folder that its "
            "save_pretrained wrote to the other commands, no conversion is needed"
        )
    if "conv_in.weight" in weights and "classes_emb.weight" not in weights:
        return "an unconditional DDPM knows no classes, so none can be erased from it"
    return f"it has {len(weights)} tensors, {few(weights)}"
