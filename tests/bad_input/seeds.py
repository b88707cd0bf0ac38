"""Valid things of every kind, tiny, which the cases spoil, and command lines that take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from bad_input.engine import run
from PIL import Image
from safetensors.torch import save_file

NAMES = ("circle", "square", "star")
CLASSES = ("--forget", "star", "--override", "circle")
QUICK = (
    "--iterations", "2", "--set", "batch_size=2", "--set", "saliency.batches=1",
    "--set", "saliency.batch_size=2", "--set", "generator.lambda_forget=1",
    "--set", "logging.checkpoint_every=1", "--per-class", "2", "--teacher-steps", "2",
)  # fmt: skip
ERASE = ("erase", "model", "--out", "run", *CLASSES, *QUICK)
MASKED = (*ERASE, "--mask-file", "mask.safetensors")
MASK = ("mask", "model", "--out", "m.safetensors", *CLASSES, *QUICK[2:8])
SAMPLE = ("sample", "model", "--png", "x.png", "--steps", "1", "--per-class", "1")
SAMPLES = ("sample", "model", "--out", "many", "--steps", "1", "--per-class", "1")
SAMPLE_DIT = ("sample", "latent", *SAMPLE[2:])
EVALUATE = (
    "evaluate", "model", "--classifier", "classifier", "--forget", "star", "--per-class", "2",
    "--steps", "1", "--json", "found.json",
)  # fmt: skip
SHOWN = ("evaluate", "--images", "real.npz", *EVALUATE[2:6], "--json", "found.json")
PROMPTS = (
    "sample", "pipe", "--prompt", "a cat", "--per-class", "1", "--steps", "1", "--png", "x.png"
)  # fmt: skip
JUDGED_PROMPTS = (
    "evaluate", "--prompts", "prompts.csv", "--pipeline", "pipe", "--samples", "drawn", "--steps",
    "1", "--nudity-detector", "nudity.onnx", "--json", "found.json",
)  # fmt: skip
CONCEPT = (
    "erase", "--pipeline", "pipe", "--recipe", "object", "--name", "cat", "--override", "dog",
    "--out", "run", "--no-previews", "--iterations", "1", "--density", "0.2", "--set",
    "batch_size=2", "--set", "micro_batch=null", "--set", "saliency.batches=1", "--set",
    "saliency.batch_size=2", "--set", "text.max_prompts=4", "--set", "precision=fp32",
)  # fmt: skip
TEACHER = (
    "train-teacher", "--config", "small_teacher", "--dataset", "images", "--data-root", "data",
    "--out", "run", "--iterations", "1", "--set", "batch_size=2", "--set", "network.channels=8",
    "--set", "network.channel_mult=[1]", "--set", "network.attention_levels=[]",
)  # fmt: skip
JUDGE = (
    "train-classifier", "--arch", "small", "--dataset", "images", "--data-root", "data", "--out",
    "run", "--iterations", "1", "--set", "batch_size=2",
)  # fmt: skip
APPLY = ("patch", "apply", "model", "patch.safetensors", "--out", "patched")
EXPORT = ("patch", "export", "model", "patch.safetensors", "--to", "peft-shira", "--out", "patched")
COMPARE = ("compare", "done", "other.json", "--out", "page")
CONVERT = ("convert", "ckpt.pth", "--out", "converted")
AGAIN = ("erase", "model", "--out", "done", *CLASSES, *QUICK)
# Command lines that would succeed, with what they need and what they write.
LINES = {
    "sample": (SAMPLE, ("model",), ("x.png",)),
    "sample of a DiT": (SAMPLE_DIT, ("latent",), ("x.png",)),
    "sample of prompts": (PROMPTS, ("pipe",), ("x.png",)),
    "erase": (ERASE, ("model",), ("run",)),
    "erase masked": (MASKED, ("model", "mask.safetensors"), ("run",)),
    "erase SalUn": ((*ERASE, "--mask-file", "salun.pt"), ("model", "salun.pt"), ("run",)),
    "erase again": (AGAIN, ("model", "done"), ("done",)),
    "erase of a concept": (CONCEPT, ("pipe",), ("run",)),
    "mask": (MASK, ("model",), ("m.safetensors", "m.png")),
    "evaluate": (EVALUATE, ("model", "classifier"), ("found.json",)),
    "evaluate of images": (SHOWN, ("real.npz", "classifier"), ("found.json",)),
    "evaluate of folders": (
        (*SHOWN[:2], "folders", *SHOWN[3:]), ("folders", "classifier"), ("found.json",)),
    "evaluate of samples": (
        (*SHOWN[:2], "samples", *SHOWN[3:]), ("samples", "classifier"), ("found.json",)),
    "evaluate of prompts": (
        JUDGED_PROMPTS, ("pipe", "prompts.csv", "nudity.onnx"), ("found.json", "drawn")),
    "train-teacher": (TEACHER, ("data",), ("run",)),
    "train-classifier": (JUDGE, ("data",), ("run",)),
    "convert": (CONVERT, ("ckpt.pth",), ("converted",)),
    "convert weights": (
        ("convert", "weights.safetensors", *CONVERT[2:]), ("weights.safetensors",), ("converted",)),
    "compare": (COMPARE, ("done", "other.json"), ("page",)),
    "patch apply": (APPLY, ("model", "patch.safetensors"), ("patched",)),
    "patch export": (EXPORT, ("model", "patch.safetensors"), ("patched",)),
    "patch info": (("patch", "info", "patch.safetensors"), ("patch.safetensors",), ()),
    "info": (("info",), (), ()),
}  # fmt: skip


def make(root: Path) -> None:
    """Write all of it into the empty folder `root`."""
    torch.manual_seed(0)
    _model(root)
    _images(root)
    _pipeline(root)
    for arguments in (
        (*AGAIN, "--classifier", "classifier"),
        (*EVALUATE[:-1], "other.json"),
        ("sample", "model", "--out", "samples", "--steps", "1", "--per-class", "2"),
    ):
        ended = run(root, arguments)
        assert ended.code == 0, (arguments, ended)


def _model(root: Path) -> None:
    from checkpoint_layouts import LAYOUTS
    from diffusers import FlowMatchEulerDiscreteScheduler
    from tiny_models import tiny_dit, tiny_scheduler, tiny_unet
    from tiny_pipeline import CHANNELS, SIDE, tiny_vae

    from pecker_fast import ModelFolder, SaliencyMask, save_patch
    from pecker_fast.evaluate.classifier import SmallClassifier

    unet = tiny_unet()
    ModelFolder(unet, tiny_scheduler(), NAMES).save(root / "model")
    latent = tiny_dit(3, (CHANNELS, SIDE, SIDE))
    flow = FlowMatchEulerDiscreteScheduler()
    ModelFolder(latent, flow, NAMES, vae=tiny_vae()).save(root / "latent")
    SmallClassifier(3, width=4).save(root / "classifier")
    mask = SaliencyMask.random(unet, 0.1, seed=0)
    mask.save(root / "mask.safetensors")
    dense = {name: torch.zeros(p.shape) for name, p in unet.named_parameters()}
    dense["conv_in.weight"][:1] = 1
    torch.save(dense, root / "salun.pt")
    erased = tiny_unet()
    erased.load_state_dict(unet.state_dict())
    with torch.no_grad():
        for name, param in erased.named_parameters():
            if name in mask.indices:
                param.view(-1)[mask.indices[name].long()] += 1
    save_patch(root / "patch.safetensors", unet, erased, mask, forget="star")
    torch.save(LAYOUTS["trained"][0], root / "ckpt.pth")
    save_file(dict(LAYOUTS["weights alone"][0]), root / "weights.safetensors")


def _images(root: Path) -> None:
    labels = np.arange(60) % 3
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    (root / "data").mkdir()
    for name in ("real", "data/train", "data/test"):
        np.savez(root / f"{name}.npz", images=images, labels=labels, class_names=np.array(NAMES))
    for label, name in enumerate(NAMES):
        folder = root / "folders" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(images[3 * number + label, 0]).save(folder / f"{number}.png")


def _pipeline(root: Path) -> None:
    import nudity_files
    from tiny_pipeline import save_tiny_pipeline

    save_tiny_pipeline(root / "pipe", length=48)
    rows = ("prompt,group,label,seed,guidance", "a cat,forget,cat,1,2.5", "a dog,keep,dog,2,3.5")
    (root / "prompts.csv").write_text("\n".join(rows) + "\n")
    output = nudity_files.anchors((8, 8, 4, 4, nudity_files.FACE, 0.9))
    nudity_files.write_file(root / "nudity.onnx", output, names=nudity_files.NAMES)
