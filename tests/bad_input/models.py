"""Model folders: network, weights, noise schedule, description."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from bad_input.building import case, each, keys, whole_json
from bad_input.case import Case
from bad_input.seeds import ERASE, EVALUATE, MASK, SAMPLE, SAMPLE_DIT
from bad_input.spoil import ANY_FILE, TENSORS, edit

UNET = "model/unet/config.json"
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
SCHEDULE = "model/scheduler/scheduler_config.json"
ABOUT = "model/pecker_fast.json"

_NUMBER = "null text negative fraction huge list"
_NAMES = "null text number empty-list"

_UNET_KEYS = {
    "sample_size": "null text negative zero fraction huge list pair nested object missing",
    "in_channels": "null text negative zero fraction list",
    "out_channels": "null text negative zero pair",
    "block_out_channels": "null text negative list nested pair",
    "layers_per_block": "null text negative fraction list",
    "down_block_types": "null text list pair object",
    "up_block_types": "null text list pair",
    "norm_num_groups": "null text negative zero",
    "num_class_embeds": "null text negative zero huge list missing",
    "class_embed_type": "text zero list true",
    "act_fn": "null text zero",
    "time_embedding_type": "null text zero",
    "_class_name": "null text zero list escape missing",
    "center_input_sample": "text",
    "attention_head_dim": "text negative zero",
}
_SCHEDULE_KEYS = {
    "num_train_timesteps": "null text negative zero fraction huge list digits",
    "beta_start": "null text negative zero huge list infinity nan missing",
    "beta_end": "null text negative zero huge nan",
    "beta_schedule": "null text zero list escape",
    "prediction_type": "null text zero list",
    "_class_name": "null text zero list escape",
    "trained_betas": "text pair list nested zero",
    "rescale_betas_zero_snr": "true text",
    "thresholding": "true",
    "variance_type": "text zero",
    "clip_sample": "text",
}
_DIT_KEYS = {
    "sample_size": "null text negative zero fraction huge list",
    "in_channels": "null text negative zero list",
    "out_channels": "text negative zero pair",
    "num_layers": "null text negative fraction huge",
    "num_attention_heads": "null text negative zero huge",
    "attention_head_dim": "null text negative zero huge",
    "patch_size": "null text negative zero huge",
    "num_embeds_ada_norm": "null text negative zero huge",
    "norm_type": "null text zero",
    "dropout": "null text negative huge nan",
    "_class_name": "null text zero list missing",
}
_FLOW_KEYS = {
    "num_train_timesteps": "null text negative zero fraction huge digits",
    "shift": "null text negative zero huge nan",
    "use_dynamic_shifting": "text list",
    "invert_sigmas": "true",
    "_class_name": "null text zero list",
    "beta_start": "negative",
}
_ABOUT_KEYS = {
    "class_names": "null text zero true object nested pair list escape deep",
    "class_names.0": "null zero object escape list",
    "patch_size": "null text negative zero fraction huge true list digits",
    "null_label": "text negative zero fraction huge true list",
    "kind": "null text zero list escape object",
    "figures": "null text zero list true deep",
    "figures.frozen": "null text list zero",
    "figures.t_init": "null text negative huge fraction list",
    "figures.forget": "null text negative huge list fraction object",
    "schedule": "text zero list true object",
}

OTHER_SCHEDULES = {
    "FlowMatchEulerDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 3.0},
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "EDMEulerScheduler": {"sigma_min": 0.002, "sigma_max": 80.0, "num_train_timesteps": 1000},
    "EDMDPMSolverMultistepScheduler": {"sigma_min": 0.002, "sigma_max": 80.0},
    "ScoreSdeVeScheduler": {"num_train_timesteps": 2000, "snr": 0.15, "sigma_max": 1348.0},
    "ScoreSdeVpScheduler": {"num_train_timesteps": 2000, "beta_min": 0.1, "beta_max": 20},
    "KarrasVeScheduler": {"sigma_min": 0.02, "sigma_max": 100},
    "CMStochasticIterativeScheduler": {"num_train_timesteps": 40, "sigma_max": 80.0},
    "RePaintScheduler": {"num_train_timesteps": 1000, "beta_schedule": "sigmoid"},
    "VQDiffusionScheduler": {"num_vec_classes": 100},
    "AmusedScheduler": {"mask_token_id": 5},
    "DDPMWuerstchenScheduler": {"s": 0.008, "scaler": 1.0},
    "TCDScheduler": {"beta_schedule": "squaredcos_cap_v2"},
    "DDPMScheduler": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000},
    "MyOwnScheduler": {"beta_start": 0.1, "beta_end": 0.2},
}
"""Noise schedules that are not the linear betas that a class model must have."""


def _schedule(file: Path, name: str, betas: bool) -> None:
    content = {"_class_name": name, "_diffusers_version": "0.31.0", **OTHER_SCHEDULES[name]}
    if betas:
        content |= {"beta_start": 0.0001, "beta_end": 0.02}
    file.write_text(json.dumps(content))


def schedules(
    prefix: str, file: str, arguments: tuple[str, ...], needs: tuple[str, ...], **more: Any
) -> list[Case]:
    """Schedules of other kinds, also where the file still has betas."""
    table = {
        name + (" with betas" if betas else ""): partial(_schedule, name=name, betas=betas)
        for name in OTHER_SCHEDULES
        for betas in (False, True)
        if name != "MyOwnScheduler" or betas
    }
    return each(prefix, table, file, arguments, needs, named="scheduler", **more)


def _rename(old: str, new: str, folder: Path) -> None:
    shutil.move(folder / old, folder / new)


def _learned_variance(folder: Path) -> None:
    edit(folder / UNET, "out_channels", 2)


def _names_twice(folder: Path) -> None:
    edit(folder / ABOUT, "class_names", ["circle", "circle", "Circle"])


def _other_weights(name: str, folder: Path) -> None:
    _rename(WEIGHTS, f"model/unet/{name}", folder)


_FLOWS = ("FlowMatchEulerDiscreteScheduler",)  # says what a network learnt, which may be a flow
_NEEDS = ("model",)
_JUDGED = ("model", "classifier")

CASES = [
    *keys("unet", UNET, _UNET_KEYS, SAMPLE, _NEEDS, named="model"),
    *keys("schedule", SCHEDULE, _SCHEDULE_KEYS, SAMPLE, _NEEDS, named="schedul"),
    *keys("schedule in erase", SCHEDULE, dict(list(_SCHEDULE_KEYS.items())[:5]), ERASE, _NEEDS),
    *keys("description", ABOUT, _ABOUT_KEYS, SAMPLE, _NEEDS),
    *keys("description in erase", ABOUT, dict(list(_ABOUT_KEYS.items())[:4]), ERASE, _NEEDS),
    *whole_json("unet", UNET, SAMPLE, _NEEDS, named="model"),
    *whole_json("schedule", SCHEDULE, MASK, _NEEDS, named="schedul"),
    *whole_json(
        "description", ABOUT, SAMPLE, _NEEDS, named="pecker_fast.json", fine=("gone", "object")
    ),
    *each("weights", ANY_FILE, WEIGHTS, ERASE, _NEEDS, named="model"),
    *each("weights", TENSORS, WEIGHTS, SAMPLE, _NEEDS, named="model"),
    *each("weights in evaluate", TENSORS, WEIGHTS, EVALUATE, _JUDGED, named="model"),
    *schedules("schedule of another kind", SCHEDULE, SAMPLE, _NEEDS, fine=_FLOWS),
    *schedules("schedule of another kind in erase", SCHEDULE, ERASE, _NEEDS, fine=_FLOWS),
    *keys(
        "dit", "latent/transformer/config.json", _DIT_KEYS, SAMPLE_DIT, ("latent",),
        named="latent",
    ),
    *keys(
        "flow", "latent/scheduler/scheduler_config.json", _FLOW_KEYS, SAMPLE_DIT, ("latent",),
        named="schedul",
    ),
    *whole_json("dit", "latent/transformer/config.json", SAMPLE_DIT, ("latent",), named="latent"),
    *each(
        "autoencoder", TENSORS, "latent/vae/diffusion_pytorch_model.safetensors", SAMPLE_DIT,
        ("latent",), named="vae",
    ),
    case("autoencoder gone", SAMPLE_DIT, ("latent",), lambda f: shutil.rmtree(f / "latent/vae"),
         named="vae"),
    case("patches of latent images", SAMPLE_DIT, ("latent",),
         lambda f: edit(f / "latent/pecker_fast.json", "patch_size", 2), named="patch_size"),
    *(
        case(f"weights named {name}", SAMPLE, _NEEDS, partial(_other_weights, name), named="model")
        for name in (
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.bin",
            "diffusion_pytorch_model-00001-of-00002.safetensors",
            "model.safetensors",
            "diffusion_pytorch_model.safetensors.part",
        )
    ),
    case("learned variance", ERASE, _NEEDS, _learned_variance, named="model"),
    case("class names twice", ERASE, _NEEDS, _names_twice, named="class_names"),
    case("no such folder", ("sample", "nowhere", "--png", "x.png"), named="nowhere"),
    case("a file", ("sample", "precious.txt", "--png", "x.png"), named="precious.txt"),
    case("an empty name", ("sample", "", "--png", "x.png")),
    case("name of a hub", ("sample", "google/ddpm-cifar10-32", "--png", "x.png"), named="google"),
    case("name too long", ("sample", "x" * 5000, "--png", "x.png")),
    case("name with escape", ("sample", "\x1b[31mx", "--png", "x.png")),
    case("name of two lines", ("sample", "x\npecker-fast: fine", "--png", "x.png")),
    case("name that is no UTF-8", ("sample", "x\udcff", "--png", "x.png")),
    case("dot", ("sample", ".", "--png", "x.png")),
    case("root", ("sample", "/", "--png", "x.png")),
    case("a device", ("sample", "/dev/null", "--png", "x.png"), named="/dev/null"),
    case("weights as model", ("sample", WEIGHTS, "--png", "x.png"), _NEEDS, named="safetensors"),
    case("unet gone", SAMPLE, _NEEDS, lambda f: shutil.rmtree(f / "model/unet"), named="unet"),
    case("scheduler gone", MASK, _NEEDS, lambda f: shutil.rmtree(f / "model/scheduler")),
    case("unet is a file", SAMPLE, _NEEDS, lambda f: (
        shutil.rmtree(f / "model/unet"), (f / "model/unet").write_text("x")
    )),
]  # fmt: skip
