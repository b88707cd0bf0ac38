"""A pipeline of Stable Diffusion 1.x, 2.x or XL as one file in the original layout.

What other programs load, and diffusers by `from_single_file`, which is how the tests read it back.
Names and the shapes of a few tensors change, values and precision do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import check_output_file, read_json
from pecker_fast.models.architectures import StableDiffusion, StableDiffusionXL
from pecker_fast.models.folder import WEIGHTS
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.models.weights import weights_in
from pecker_fast.torch_files import save_tensors

__all__ = ["save_single_file"]

_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_AUTOENCODER = {
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    r"down_blocks\.(\d+)\.resnets": r"down.\1.block",
    r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    r"conv_shortcut": "nin_shortcut",
    r"conv_norm_out": "norm_out",
    r"attn_1\.group_norm": "attn_1.norm",
    r"attn_1\.(?:to_)?(q|k|v)(?:uery|ey|alue)?\.": r"attn_1.\1.",
    r"attn_1\.(?:to_out\.0|proj_attn)": "attn_1.proj_out",
}
_OPEN_CLIP = {
    r"^embeddings\.position_embedding\.weight": "positional_embedding",
    r"^embeddings\.token_embedding": "token_embedding",
    r"^final_layer_norm": "ln_final",
    r"^encoder\.layers": "transformer.resblocks",
    r"layer_norm(\d)": r"ln_\1",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    r"self_attn": "attn",
}
_CLIP = "cond_stage_model.transformer.text_model."
_XL_CLIP = "conditioner.embedders.0.transformer.text_model."


def save_single_file(pipeline: Path, out: Path, *, force: bool = False) -> list[str]:
    """Write the file.

    Returns:
        Lines on what other programs cannot see in it.

    Raises:
        PeckerError: another family, weights that are missing, or a place that cannot be written to.
    """
    if out.suffix != ".safetensors":
        raise PeckerError(f"{out}: a pipeline in one file is a .safetensors; name it so")
    check_output_file(out, force)
    checked = PipelineFolder.load(pipeline)
    family, config = checked.architecture, checked.network.config
    if not isinstance(family, (StableDiffusion, StableDiffusionXL)):
        raise PeckerError(
            f"pipeline folder {pipeline}: {family.name} cannot be written as one file, Stable "
            "Diffusion 1.x, 2.x and XL can"
        )
    layers, levels = config.layers_per_block, len(checked.vae.config.block_out_channels)
    if not isinstance(layers, int):
        raise PeckerError(
            f"{pipeline / 'unet'}: has another number of layers in each block, which the original "
            "layout has not"
        )
    attended = ["Attn" in kind for kind in config.up_block_types]
    prediction = checked.prediction_type
    del checked  # what follows takes the files as they are, in their precision
    try:
        unet = _renamed(
            _read(pipeline / "unet", WEIGHTS),
            lambda name: f"model.diffusion_model.{_of_unet(name, layers, attended)}",
        )
    except (KeyError, StopIteration) as error:
        raise PeckerError(
            f"{pipeline / 'unet'}: has parts that the original layout has not ({error})"
        ) from error
    tensors = {**unet, **_autoencoder(_read(pipeline / "vae", WEIGHTS), levels)}
    text = _read(pipeline / "text_encoder", "model.safetensors")
    if isinstance(family, StableDiffusionXL):
        second = _read(pipeline / "text_encoder_2", "model.safetensors")
        tensors |= _renamed(text, lambda name: _XL_CLIP + name)
        tensors |= _open_clip(second, "conditioner.embedders.1.model.")
    elif read_json(pipeline / "text_encoder" / "config.json").get("hidden_act") == "gelu":  # 2.x
        tensors |= _open_clip(text, "cond_stage_model.model.")
    else:
        tensors |= _renamed(text, lambda name: _CLIP + name)
    save_tensors(out, tensors, {"format": "pt"})
    lines = ["no schedule and no number of steps is in it: tell the program that loads it"]
    if prediction != "epsilon":
        lines.append(f"its network predicts {prediction}, which a program may have to be told")
    return lines


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    """The weights of a part, by names without the prefix that older versions write."""
    found: dict[str, Tensor] = {}
    for file in weights_in(folder, name).files:
        found |= load_file(file)
    return {
        name.removeprefix("text_model."): tensor for name, tensor in found.items()
        if not name.endswith("position_ids")
    }  # fmt: skip


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(name): tensor for name, tensor in tensors.items()}


def _of_unet(name: str, layers: int, attended: list[bool]) -> str:
    """The original name of a parameter of the U-Net.

    Args:
        name: in diffusers.
        layers: of a block on the way down; one more on the way up.
        attended: of each block on the way up, whether attention stands before the upsampling.
    """
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    if found is None:
        start = next(start for start in _TOP if name.startswith(f"{start}."))
        rest = name[len(start) + 1 :]
        return f"{_TOP[start]}.{_of_resnet(rest) if '.resnets.' in start else rest}"
    way, kind, rest = found[1], found[3], found[5]
    block, number = int(found[2]), int(found[4])
    first = (layers + 1) * block
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{1 + attended[block]}.{rest}"
    place = f"input_blocks.{first + number + 1}" if way == "down" else (
        f"output_blocks.{first + number}"
    )  # fmt: skip
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_of_resnet(rest)}"


def _of_resnet(name: str) -> str:
    part, rest = name.split(".", 1)
    return f"{_RESNET[part]}.{rest}"


def _autoencoder(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Levels on the way up count from below there; attention is a convolution of one pixel."""

    def rename(name: str) -> str:
        name = re.sub(
            r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
            lambda m: f"up.{levels - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
            name,
        )
        return f"first_stage_model.{_substituted(name, _AUTOENCODER)}"

    return {
        name: tensor[:, :, None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
        for name, tensor in _renamed(tensors, rename).items()
    }


def _open_clip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Queries, keys and values lie in one tensor there, and the projection is transposed."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = prefix + _substituted(name, _OPEN_CLIP)
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = tensor.T.contiguous()
        elif ".q_proj." in name:
            three = [tensors[name.replace(".q_proj.", f".{which}_proj.")] for which in "qkv"]
            found[new.replace("q_proj.", "in_proj_")] = torch.cat(three)
        elif ".k_proj." not in name and ".v_proj." not in name:
            found[new] = tensor
    return found


def _substituted(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name
