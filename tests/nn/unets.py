"""Small U-Nets of both classes, their blocks, and the comparison with them in double precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_blocks
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pecker_fast.nn.accelerate import fuse_

EMBEDDING, TEXT, GROUPS = 12, 10, 2
BATCH, SIDE = 2, 6
# Relative error of whole tensors, as norms: rounding of 2^-24 in sums of some hundred terms,
# through a dozen layers.
FLOAT32 = 1e-5

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Case(NamedTuple):
    """A module and how it is called."""

    module: nn.Module
    inputs: dict[str, Any]  # by argument name; tensors, or tuples of them

    def __call__(self) -> Any:
        return self.module(**self.inputs)


def case_of(module: nn.Module, inputs: dict[str, Any]) -> Case:
    """On the device under test."""
    return Case(module.to(DEVICE), on_device(inputs))


def on_device(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: on_device(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(on_device(item) for item in value)
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def image(channels: int, side: int = SIDE) -> Tensor:
    # A mean that differs between channels, as behind a convolution with a bias.
    return torch.randn(BATCH, channels, side, side) + torch.randn(1, channels, 1, 1)


def embedding() -> Tensor:
    return torch.randn(BATCH, EMBEDDING)


def text() -> Tensor:
    return torch.randn(BATCH, 5, TEXT)


def resnet(channels: int = 16, out: int = 16, **options: Any) -> Case:
    options = {"temb_channels": EMBEDDING, "groups": GROUPS, **options}
    block = ResnetBlock2D(in_channels=channels, out_channels=out, **options)
    temb = None if options["temb_channels"] is None else embedding()
    return case_of(block, {"input_tensor": image(channels), "temb": temb})


def _common(**options: Any) -> dict[str, Any]:
    return {"temb_channels": EMBEDDING, "resnet_groups": GROUPS, "num_layers": 1, **options}


def down(kind: str, **options: Any) -> Case:
    cross = {"cross_attention_dim": TEXT, "num_attention_heads": 2} if "Cross" in kind else {}
    heads = {"attention_head_dim": 8} if kind.startswith("Attn") else {}
    block = getattr(unet_2d_blocks, kind)(
        in_channels=8, out_channels=16, **_common(**cross, **heads, **options)
    )
    inputs = {"hidden_states": image(8), "temb": embedding()}
    return case_of(block, inputs | ({"encoder_hidden_states": text()} if cross else {}))


def up(kind: str, **options: Any) -> Case:
    """Groups straddle the border between the two sources: 12 + 8 channels in groups of 10."""
    cross = {"cross_attention_dim": TEXT, "num_attention_heads": 2} if "Cross" in kind else {}
    heads = {"attention_head_dim": 16} if kind.startswith("Attn") else {}
    block = getattr(unet_2d_blocks, kind)(
        in_channels=8,
        prev_output_channel=12,
        out_channels=16,
        **_common(**cross, **heads, **options),
    )
    skips = (image(8), image(16))[: options.get("num_layers", 1)]
    inputs = {"hidden_states": image(12), "res_hidden_states_tuple": skips, "temb": embedding()}
    return case_of(block, inputs | ({"encoder_hidden_states": text()} if cross else {}))


def mid(kind: str, **options: Any) -> Case:
    if "Cross" in kind:
        options = {"cross_attention_dim": TEXT, "num_attention_heads": 2, **options}
        inputs = {"encoder_hidden_states": text()}
    else:
        options = {"attention_head_dim": 8, **options}
        inputs = {}
    block = getattr(unet_2d_blocks, kind)(in_channels=16, **_common(**options))
    return case_of(block, {"hidden_states": image(16), "temb": embedding(), **inputs})


def attention(**options: Any) -> Case:
    block = Attention(
        16,
        heads=2,
        dim_head=8,
        norm_num_groups=GROUPS,
        residual_connection=True,
        bias=True,
        **options,
    )
    return case_of(block, {"hidden_states": image(16)})


def transformer(linear: bool) -> Case:
    block = Transformer2DModel(
        2,
        8,
        in_channels=16,
        cross_attention_dim=TEXT,
        norm_num_groups=GROUPS,
        use_linear_projection=linear,
    )
    return case_of(
        block,
        {"hidden_states": image(16), "encoder_hidden_states": text(), "return_dict": False},
    )


def upsample() -> Case:
    return case_of(Upsample2D(8, use_conv=True), {"hidden_states": image(8)})


def class_unet(**options: Any) -> Case:
    """In the style of the CIFAR-10 DDPM, with class labels."""
    unet = UNet2DModel(
        **{
            "sample_size": 8,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": None,
            "norm_num_groups": GROUPS,
            "downsample_padding": 0,
            "num_class_embeds": 4,
            **options,
        }
    )
    inputs = {"sample": image(3, 8), "timestep": torch.tensor([3, 700])}
    inputs |= {"class_labels": torch.tensor([1, 3]), "return_dict": False}
    return case_of(unet, inputs)


def text_unet(linear: bool = False, **options: Any) -> Case:
    """In the style of Stable Diffusion 1.5, or 2 with linear projections."""
    unet = UNet2DConditionModel(
        **{
            "sample_size": 8,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": TEXT,
            "attention_head_dim": 2,
            "norm_num_groups": GROUPS,
            "use_linear_projection": linear,
            **options,
        }
    )
    inputs = {"sample": image(4, 8), "timestep": torch.tensor([3, 700])}
    return case_of(unet, inputs | {"encoder_hidden_states": text(), "return_dict": False})


# Every kind of block that is switched, alone.
BLOCKS: dict[str, Callable[[], Case]] = {
    "resnet": resnet,
    "resnet-shortcut": lambda: resnet(8, 16),
    "resnet-no-embedding": lambda: resnet(temb_channels=None, output_scale_factor=math.sqrt(2)),
    "resnet-activated-embedding": lambda: resnet(skip_time_act=True),
    "resnet-shortcut-without-bias": lambda: resnet(8, 16, conv_shortcut_bias=False),
    "DownBlock2D": lambda: down("DownBlock2D"),
    "AttnDownBlock2D": lambda: down("AttnDownBlock2D"),
    "CrossAttnDownBlock2D": lambda: down("CrossAttnDownBlock2D"),
    "UNetMidBlock2D": lambda: mid("UNetMidBlock2D"),
    "UNetMidBlock2DCrossAttn": lambda: mid("UNetMidBlock2DCrossAttn"),
    "UpBlock2D": lambda: up("UpBlock2D", num_layers=2),
    "AttnUpBlock2D": lambda: up("AttnUpBlock2D"),
    "CrossAttnUpBlock2D": lambda: up("CrossAttnUpBlock2D"),
    "attention": lambda: attention(rescale_output_factor=math.sqrt(2)),
    "transformer": lambda: transformer(linear=False),
    "transformer-linear": lambda: transformer(linear=True),
    "upsample": upsample,
}
UNETS: dict[str, Callable[[], Case]] = {
    "class": class_unet,
    "text": text_unet,
    "text-linear": lambda: text_unet(linear=True),
}


def shake_(module: nn.Module) -> nn.Module:
    """Move every parameter off its initial value: norms start as 1 and 0, which hides mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def leaves(value: Any) -> list[Tensor]:
    """The tensors in nested tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, tuple) else []


def convert(value: Any, dtype: torch.dtype) -> Any:
    """A copy with floating-point tensors in `dtype`, requiring grad."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        return value.detach().to(dtype, copy=True).requires_grad_()
    if isinstance(value, dict):
        return {name: convert(item, dtype) for name, item in value.items()}
    return tuple(convert(item, dtype) for item in value) if isinstance(value, tuple) else value


def result(case: Case) -> Tensor:
    """The first output, without gradients."""
    with torch.no_grad():
        return leaves(case())[0]


def run(case: Case) -> dict[str, Tensor]:
    """Outputs and gradients of a module: of the inputs, and of each layer's parameters together.

    Together, since the gradient of an attention's key bias is 0 but for rounding: a relative error
    needs the layer's weight beside it.
    """
    outputs = leaves(case())
    generator = torch.Generator().manual_seed(7)
    loss = 0
    for output in outputs:
        cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        loss = loss + (output.double() * cotangent.to(output.device)).sum()
    loss.backward()
    result = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    for index, tensor in enumerate(leaves(case.inputs)):
        if tensor.requires_grad:
            result[f"input {index}"] = tensor.grad
    for name, layer in case.module.named_modules():
        grads = [p.grad.flatten() for p in layer.parameters(recurse=False) if p.grad is not None]
        if grads:
            result[f"layer {name}"] = torch.cat(grads)
    return result


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative error of each result, as the norm of the difference over the norm."""
    assert found.keys() == expected.keys()
    relative = {}
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        relative[name] = ((found[name].double() - value).norm() / value.norm()).item()
    return relative


# How far the fused path may err beyond diffusers' own in the same dtype, both measured against
# float64 on the same inputs and machine: what torch's own bfloat16 costs differs between
# processors. The fused path stores fewer tensors, so its expected error is no larger; but a
# result's error is a sum of few dominant roundings, and the two paths draw them anew. Over 190
# draws of blocks and U-Nets the root mean square over a case's results was 0.6 to 1.3 times
# diffusers', the worst single result 2.9 times the larger of diffusers' error there and that root
# mean square.
ALL_RESULTS, ONE_RESULT = 1.5, 4.0


def assert_no_worse(found: dict[str, float], plain: dict[str, float]) -> None:
    """Hold the errors of a fused module to those of the same module on torch's own path.

    Args:
        found: What `errors` gives for the fused module.
        plain: The same for the module as diffusers has it, in the same dtype.
    """
    assert found.keys() == plain.keys()
    level = _root_mean_square(plain)
    limits = {name: ONE_RESULT * max(error, level) for name, error in plain.items()}
    assert not {name: error for name, error in found.items() if not error <= limits[name]}
    assert _root_mean_square(found) <= ALL_RESULTS * level


def _root_mean_square(relative: dict[str, float]) -> float:
    return math.sqrt(math.fsum(error**2 for error in relative.values()) / len(relative))


def double(case: Case) -> Case:
    """The same module, plain, and its inputs in float64: the oracle."""
    module = copy.deepcopy(case.module).double()
    return Case(module, convert(case.inputs, torch.float64))


def plain(case: Case, dtype: torch.dtype, stream: torch.dtype | None = None) -> Case:
    """A copy with parameters in `dtype` and inputs in `stream` (None: the same)."""
    return Case(copy.deepcopy(case.module).to(dtype), convert(case.inputs, stream or dtype))


def fused(case: Case, dtype: torch.dtype, stream: torch.dtype | None = None) -> Case:
    """The same with fused blocks."""
    copied = plain(case, dtype, stream)
    fuse_(copied.module)
    return copied


def types(network: nn.Module) -> dict[str, type]:
    """The classes of all modules by name."""
    return {name: type(module) for name, module in network.named_modules()}


class LayoutCopies(TorchDispatchMode):
    """Counts copies of activations into another order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.clone.default and args[0].dim() >= 3:
            self.count += args[0].stride() != out.stride()
        return out
