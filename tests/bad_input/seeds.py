"""Valid things of every kind, tiny, which the cases spoil."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import torch
from bad_input.zygote import Zygote
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
MASK = ("mask", "model", "--out", "m.safetensors", *CLASSES, *QUICK[2:8])
SAMPLE = ("sample", "model", "--png", "x.png", "--steps", "1", "--per-class", "1")
SAMPLE_DIT = ("sample", "latent", *SAMPLE[2:])
EVALUATE = (
    "evaluate", "model", "--classifier", "classifier", "--forget", "star", "--per-class", "2",
    "--steps", "1", "--json", "found.json",
)  # fmt: skip
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


def make(root: Path, zygote: Zygote) -> None:
    """Write all of it into the empty folder `root`."""
    torch.manual_seed(0)
    _model(root)
    _images(root)
    _published(root)
    _pipeline(root)
    _judges(root)
    for arguments in (
        [*ERASE[:2], "--out", "done", *ERASE[4:], "--classifier", "classifier"],
        ["evaluate", *EVALUATE[1:-1], "other.json"],
        ["sample", "model", "--out", "samples", "--steps", "1", "--per-class", "2"],
        ["train-classifier", *JUDGE[1:8], "judged", *JUDGE[9:]],
        ["train-teacher", *TEACHER[1:8], "taught", *TEACHER[9:]],
    ):
        ended = zygote.run(root, arguments)
        assert ended.code == 0, (arguments, ended)


def _model(root: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from tiny_models import tiny_dit, tiny_scheduler, tiny_unet
    from tiny_pipeline import CHANNELS, SIDE, tiny_vae

    from pecker_fast.evaluate.classifier import SmallClassifier
    from pecker_fast.masks.mask import SaliencyMask
    from pecker_fast.models import ModelFolder
    from pecker_fast.patches.patch import save_patch

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


def _images(root: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = random.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    np.savez(root / "real.npz", images=images, labels=labels, class_names=np.array(NAMES))
    np.savez(root / "floats.npz", images=(images / 127.5 - 1).astype(np.float32), labels=labels)
    (root / "data").mkdir()
    for part in ("train", "test"):
        np.savez(root / f"data/{part}.npz", images=images, labels=labels, class_names=NAMES)
    for label, name in enumerate(NAMES):
        folder = root / "folders" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(images[3 * number + label, 0]).save(folder / f"{number}.png")
    fashion = root / "fashion"
    fashion.mkdir()
    for stem in ("train", "t10k"):
        pixels = random.integers(0, 256, (20, 28, 28), dtype=np.uint8)
        header = b"".join(n.to_bytes(4, "big") for n in (2051, 20, 28, 28))
        content = gzip.compress(header + pixels.tobytes())
        (fashion / f"{stem}-images-idx3-ubyte.gz").write_bytes(content)
        header = b"".join(n.to_bytes(4, "big") for n in (2049, 20))
        content = gzip.compress(header + bytes(range(10)) * 2)
        (fashion / f"{stem}-labels-idx1-ubyte.gz").write_bytes(content)
    cifar = root / "cifar/cifar-10-batches-py"
    cifar.mkdir(parents=True)
    batch = {b"labels": [0, 1], b"data": np.zeros((2, 3072), np.uint8)}
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (cifar / name).write_bytes(pickle.dumps(batch))
    (cifar / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))


def _published(root: Path) -> None:
    from checkpoint_layouts import LAYOUTS

    torch.save(LAYOUTS["trained"][0], root / "ckpt.pth")
    save_file(dict(LAYOUTS["weights alone"][0]), root / "weights.safetensors")


def _pipeline(root: Path) -> None:
    from tiny_pipeline import save_tiny_pipeline

    save_tiny_pipeline(root / "pipe", length=48)
    rows = ("prompt,group,label,seed,guidance", "a cat,forget,cat,1,2.5", "a dog,keep,dog,2,3.5")
    (root / "prompts.csv").write_text("\n".join(rows) + "\n")


def _judges(root: Path) -> None:
    import nudity_files
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    part = {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "projection_dim": 8,
    }  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(root / "pipe/tokenizer")
    config = CLIPConfig(
        text_config={**part, "vocab_size": len(tokenizer), "max_position_embeddings": 48},
        vision_config={**part, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(root / "clip")
    output = nudity_files.anchors((8, 8, 4, 4, nudity_files.FACE, 0.9))
    nudity_files.write_file(root / "nudity.onnx", output, names=nudity_files.NAMES)

    class Judge(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((1, 2, 3))[:, None] * torch.ones(3)

    torch.jit.trace(Judge(), torch.zeros(2, 1, 8, 8)).save(root / "judge.pt")


def description(folder: Path) -> dict[str, object]:
    """What pecker_fast.json of a model folder holds."""
    content: dict[str, object] = json.loads((folder / "pecker_fast.json").read_text())
    return content
