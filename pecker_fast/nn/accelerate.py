"""Switches a U-Net to the fused operations in place, and back; on a CPU its convolutions.

A module is switched by exchanging its class for one that overrides `forward` (`layers`, `blocks`,
`attention`): parameters, names, hooks, modes, `state_dict`, `isinstance`, `copy.deepcopy` and
pickling stay as they are. On a GPU convolution weights become channels_last, values unchanged.

What diffusers builds is known here; a network of another kind registers its own (`register_unet`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.nn import operations, winograd
from pecker_fast.nn.attention import (
    FusedAttention,
    FusedGEGLU,
    FusedTransformer2DModel,
    FusedTransformerBlock,
)
from pecker_fast.nn.blocks import (
    FusedAttnUpBlock2D,
    FusedCrossAttnUpBlock2D,
    FusedResnetBlock2D,
    FusedUpBlock2D,
)
from pecker_fast.nn.layers import (
    AppliedSiLU,
    FusedGroupNorm,
    FusedGroupNormSiLU,
    FusedUpsample2D,
    is_unobserved,
)

__all__ = ["Fusion", "fuse_", "register_unet", "unfuse_", "winograd_"]

# Fused blocks and the class each one stands for. The order is that of switching: an up block asks
# whether its residual blocks are.
_BLOCKS: dict[Any, Any] = {
    fused: fused.__base__
    for fused in (
        FusedResnetBlock2D,
        FusedUpBlock2D,
        FusedAttnUpBlock2D,
        FusedCrossAttnUpBlock2D,
        FusedAttention,
        FusedTransformer2DModel,
        FusedTransformerBlock,
        FusedGEGLU,
        FusedUpsample2D,
    )
}
_PLAIN: dict[Any, Any] = {
    **_BLOCKS,
    FusedGroupNorm: nn.GroupNorm,
    FusedGroupNormSiLU: nn.GroupNorm,
}

# Blocks of diffusers that normalise or concatenate and have no fused form, by name: not every
# supported version has them all.
_WITHOUT_FUSED_FORM = (
    "AttnSkipUpBlock2D",
    "KCrossAttnUpBlock2D",
    "KUpBlock2D",
    "ResnetBlockCondNorm2D",
    "ResnetUpsampleBlock2D",
    "SimpleCrossAttnUpBlock2D",
    "SkipUpBlock2D",
)

# Blocks that take over the norms right inside them. Attention, also unfused, normalises tokens.
_NORM_OWNERS: list[Any] = [FusedResnetBlock2D, Attention, FusedTransformer2DModel]

# Names of a U-Net's last norm and of the activation behind it, by that of its class: to import
# both of diffusers' classes would load transformers.
_OUTPUTS: dict[str, tuple[str, str]] = {
    "UNet2DModel": ("conv_norm_out", "conv_act"),
    "UNet2DConditionModel": ("conv_norm_out", "conv_act"),
}

# On a convolution whose weight was made channels_last.
_CONVERTED = "_pecker_fast_converted"


@dataclass(frozen=True)
class Fusion:
    """What `fuse_` found and did.

    Attributes:
        switched: Number of modules now fused, by the class they had.
        left: Number of modules left on the torch path, by class and reason.
        reason: Why nothing could be switched. None: fused kernels run here.
    """

    switched: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"not fused: {self.reason}"
        switched = ", ".join(f"{count} {name}" for name, count in self.switched.items())
        left = ", ".join(f"{count} {name}" for name, count in self.left.items())
        line = f"fused: {switched or 'nothing, no block of a known kind in it'}"
        return f"{line}\non the torch path: {left}" if left else line


def register_unet(kind: type[nn.Module], output: tuple[str, str], blocks: Sequence[Any]) -> None:
    """Let `fuse_` know a kind of U-Net that is not diffusers'.

    Args:
        kind: The network's class.
        output: Names of its last norm and of the activation behind it.
        blocks: Fused blocks, each a direct subclass of the block it stands for, with a static
            `obstacle(block) -> str | None`; they take over the norms right inside them.
    """
    _OUTPUTS[kind.__name__] = output
    for fused in blocks:
        _BLOCKS[fused] = _PLAIN[fused] = fused.__base__
        _NORM_OWNERS.append(fused)


def fuse_(model: nn.Module) -> Fusion:
    """Make the blocks of a U-Net run on the fused operations, on a CPU its convolutions. In place.

    Any network built from diffusers' blocks will do; `UNet2DModel`, `UNet2DConditionModel` and what
    is registered (`models.ddpm.DDPMUNet`) are what it is for. Outputs and gradients stay what they
    were, up to rounding. Calling it twice is harmless, and picks up what was added in between.

    On a CPU it is `winograd_`. Where no kernels can run (no Triton, no AVX2),
    nothing is changed and the result says so.
    Blocks of a kind without a fused form stay as they are. A fused module runs its own class' code
    for a call that it cannot fuse: a hook on a layer inside, gradient checkpointing, FreeU, an
    attention processor that was set.

    To save a fused network with `save_pretrained`, undo it on a copy first: older versions
    of diffusers and safetensors' own `save_file` refuse weights that are channels_last.

    Args:
        model: A network, its parameters where they are to be used.

    Returns:
        What was switched and what was not; prints in one or two lines.

    Raises:
        PeckerError: Not a module.
    """
    _check(model, "fuse_")
    devices = {parameter.device for parameter in model.parameters()} or {torch.device("cpu")}
    for device in sorted(devices, key=str):
        reason = operations.unavailable(device)
        if reason is not None:
            on_cpu = all(device.type == "cpu" for device in devices)
            if on_cpu and winograd.unavailable() is None:
                return winograd_(model)
            return Fusion(reason=reason)

    left: Counter[str] = Counter()
    for fused, plain in _BLOCKS.items():
        for module in model.modules():
            if isinstance(module, Attention) and not module.residual_connection:
                continue  # inside a transformer block: nothing in it to fuse
            if type(module) is plain:
                obstacle = fused.obstacle(module)
                if obstacle is None:
                    module.__class__ = fused
                else:
                    left[f"{plain.__name__} ({obstacle})"] += 1
            elif isinstance(module, plain) and type(module) not in _BLOCKS:
                left[f"{type(module).__name__} (a class of its own)"] += 1
    for module in model.modules():
        if type(module).__name__ in _WITHOUT_FUSED_FORM:
            left[f"{type(module).__name__} (no fused form)"] += 1
    left += _switch_norms(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _make_channels_last(module)
    switched = dict.fromkeys((plain.__name__ for plain in _PLAIN.values()), 0)
    for module in model.modules():
        if type(module) in _PLAIN:
            switched[_PLAIN[type(module)].__name__] += 1
    return Fusion({name: count for name, count in switched.items() if count}, dict(left))


def winograd_(model: nn.Module) -> Fusion:
    """Make the 3x3 convolutions of a network on a CPU run Winograd's algorithm. In place.

    Two to three times as fast as torch's, with about twice their rounding: see `nn/winograd.py`,
    which also says which of them fit.

    Raises:
        PeckerError: Not a module.
    """
    _check(model, "winograd_")
    reason = winograd.unavailable()
    if reason is not None:
        return Fusion(reason=reason)
    fitting = winograd.use_winograd_(model)
    return Fusion({"Conv2d by Winograd's algorithm": fitting} if fitting else {})


def unfuse_(model: nn.Module) -> None:
    """Undo `fuse_`: classes and memory formats are what they were. In place.

    Harmless where nothing was switched.

    Raises:
        PeckerError: Not a module.
    """
    _check(model, "unfuse_")
    winograd.drop_winograd_(model)
    for module in model.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
        for name, child in module.named_children():
            if isinstance(child, AppliedSiLU):
                setattr(module, name, child.former[0])
        if module.__dict__.pop(_CONVERTED, False):
            _set_memory_format(module, torch.contiguous_format)


def _check(model: nn.Module, function: str) -> None:
    if not isinstance(model, nn.Module):
        found = type(model).__name__
        raise PeckerError(
            f"{function}: model must be a torch.nn.Module, got {found}; for a pipeline, its unet"
        )


def _switch_norms(model: nn.Module) -> Counter[str]:
    """Switch the group norms that no fused block has taken over; count those that cannot be."""
    taken = {
        id(child)
        for module in model.modules()
        if isinstance(module, tuple(_NORM_OWNERS))
        for child in module.children()
    }
    left: Counter[str] = Counter()
    for module in model.modules():
        if type(module) is nn.GroupNorm and id(module) not in taken:
            obstacle = FusedGroupNorm.obstacle(module)
            if obstacle is None:
                module.__class__ = FusedGroupNorm
            else:
                left[f"GroupNorm ({obstacle})"] += 1
    for unet in model.modules():
        for kind in type(unet).__mro__:
            if kind.__name__ in _OUTPUTS:
                _join_output(unet, *_OUTPUTS[kind.__name__])
    return left


def _join_output(unet: nn.Module, norm_name: str, activation_name: str) -> None:
    """Let the last norm apply the SiLU behind it."""
    norm, activation = getattr(unet, norm_name), getattr(unet, activation_name)
    if type(norm) is FusedGroupNorm and type(activation) is nn.SiLU and is_unobserved(activation):
        norm.__class__ = FusedGroupNormSiLU
        setattr(unet, activation_name, AppliedSiLU(activation))


def _make_channels_last(conv: nn.Conv2d) -> None:
    weight = conv._parameters.get("weight")
    if (
        weight is not None
        and weight.is_contiguous()
        and not weight.is_contiguous(memory_format=torch.channels_last)
    ):
        _set_memory_format(conv, torch.channels_last)
        setattr(conv, _CONVERTED, True)


def _set_memory_format(conv: nn.Module, memory_format: torch.memory_format) -> None:
    # Through `data`: the parameter stays the object that optimizers and hooks hold.
    weight = conv._parameters["weight"]
    assert weight is not None
    weight.data = weight.data.contiguous(memory_format=memory_format)
