"""Model folders: network, weights, noise schedule, description.

Their entries one by one: `tests/models/test_entries.py`.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from bad_input.building import case, each, whole_json
from bad_input.seeds import ERASE, MASK, SAMPLE, SAMPLE_DIT
from bad_input.spoil import ANY_FILE, TENSORS, edit

UNET = "model/unet/config.json"
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
SCHEDULE = "model/scheduler/scheduler_config.json"
ABOUT = "model/pecker_fast.json"


def _rename(old: str, new: str, folder: Path) -> None:
    shutil.move(folder / old, folder / new)


def _learned_variance(folder: Path) -> None:
    edit(folder / UNET, "out_channels", 2)


def _names_twice(folder: Path) -> None:
    edit(folder / ABOUT, "class_names", ["circle", "circle", "Circle"])


def _other_weights(name: str, folder: Path) -> None:
    _rename(WEIGHTS, f"model/unet/{name}", folder)


_NEEDS = ("model",)

CASES = [
    *whole_json("unet", UNET, SAMPLE, _NEEDS, named="model"),
    *whole_json("schedule", SCHEDULE, MASK, _NEEDS, named="schedul"),
    *whole_json(
        "description", ABOUT, SAMPLE, _NEEDS, named="pecker_fast.json", fine=("gone", "object")
    ),
    *each("weights", ANY_FILE, WEIGHTS, ERASE, _NEEDS, named="model"),
    *each("weights", TENSORS, WEIGHTS, SAMPLE, _NEEDS, named="model"),
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
