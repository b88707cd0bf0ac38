"""Short runs of every training method by the command line, and digests of what they leave on disk.

Run as a program (`make.Session` does) it reads names of cases, one a line, and answers each with a
line of JSON. It knows the package by its commands, its public names and its files only, so that
modules can be moved and merged below it.
"""

import gzip
import hashlib
import json
import os
import shutil
import sys
import traceback
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tiny_pipeline.py
from tiny_pipeline import save_tiny_pipeline

import pecker_fast
from pecker_fast import ModelFolder, SaliencyMask
from pecker_fast.cli import main

NAMES = ("circle", "square", "star")
STATISTICS = "statistics.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
MACHINE = "--device cpu --threads 1"

LENGTH = "--iterations 4 --set logging.checkpoint_every=2"
BATCH = f"{LENGTH} --set batch_size=3 --set saliency.batch_size=4"
RATES = "--set generator.lr=1e-3 --set pseudo_score.lr=2e-3"
DISTIL = f"{BATCH} {RATES} --set saliency.batches=2 --set ema.decay=0.9"
FORGET = f"{DISTIL} --forget star --override circle --set generator.lambda_forget=1"
MASKED = f"{FORGET} --mask saliency --density 0.1"
BOTH = f"{MASKED} --set mask.apply=both"
UNLEARN = f"{BATCH} --forget star --dataset images --data-root DATA"
CARRIED = "--set optimizer.beta1=0.5 --set optimizer.weight_decay=0.01"

# Name -> model and options of `erase`. DATA stands for a folder.
ERASURES = {
    "pecker": ("ddpm", MASKED),
    "pecker_unet2d": ("unet2d", f"{MASKED} --set lr_schedule=cosine"),
    "no_average": ("ddpm", f"{MASKED} --set ema.decay=null"),
    "dense": ("ddpm", f"{FORGET} --mask full"),
    "random": ("ddpm", f"{FORGET} --mask random --density 0.1 --seed 3"),
    "both": ("ddpm", BOTH),
    "both_apart": ("ddpm", f"{BOTH} --set mask.share_weights=false"),
    "bf16": ("ddpm", f"{MASKED} --set precision=bf16"),
    "bf16_both": ("ddpm", f"{BOTH} --set precision=bf16"),
    "autocast": ("unet2d", f"{MASKED} --set precision=autocast"),
    "shared_pass": ("ddpm", f"{MASKED} --set share_generator_pass=true"),
    "recompute": ("unet2d", f"{MASKED} --set recompute=true"),
    "micro_batch": ("ddpm", f"{MASKED} --set micro_batch=2 --set optimizer.release_grads=true"),
    "out_channel": ("unet2d", f"{BOTH} --set mask.granularity=out_channel"),
    "block": ("ddpm", f"{MASKED} --set mask.granularity=block --set mask.scope=per_tensor"),
    "denoise": (
        "ddpm",
        f"{MASKED} --set saliency.loss=denoise --set saliency.reduction=fisher_ratio",
    ),
    "refresh": ("ddpm", f"{BOTH} --set mask.refresh_every=1 {CARRIED}"),
    "diff_instruct": ("ddpm", f"{MASKED} --set diff_instruct=true"),
    "override_random": ("ddpm", f"{MASKED} --override random"),
    "salun": ("ddpm", f"--config cifar10_salun {UNLEARN} --override circle"),
    "random_label": ("ddpm", f"--config cifar10_salun {UNLEARN} --mask full --set ema.decay=0.9"),
    "neggrad": ("ddpm", f"--config cifar10_neggrad {UNLEARN}"),
    "finetune": ("ddpm", f"--config cifar10_finetune {UNLEARN} --set lr_schedule=linear"),
    "esd": ("ddpm", f"--config cifar10_esd {UNLEARN} --mask saliency --density 0.1"),
}
STOPPED = {"pecker", "both", "bf16_both", "refresh", "salun", "random_label"}  # and resumed


def run(options, *paths):
    """A command line in this process; `paths` are options that may hold blanks."""
    words = [{"DATA": str(data())}.get(word, word) for word in options.split()]
    if main([*words, *map(str, paths), *MACHINE.split()]) != 0:
        raise RuntimeError(f"failed: pecker-fast {options} {' '.join(map(str, paths))}")


# ---- what is recorded


def digest(tensors):
    """SHA-256 of names, dtypes, shapes and bits; the norm shows how far away a failure is."""
    sha, squares = hashlib.sha256(), 0.0
    for name, value in sorted(tensors.items()):
        sha.update(f"{name} {value.dtype} {list(value.shape)};".encode())
        sha.update(value.numpy().tobytes())
        squares += float(value.double().square().sum())
    return {"sha256": sha.hexdigest(), "norm": f"{squares**0.5:.9g}"}


def digests(out):
    """Of the network that a run directory ends with, and of its mask and patch."""
    found = {}
    for name in (f"model/unet/{WEIGHTS}", f"pipeline/unet/{WEIGHTS}", "patch.safetensors"):
        if (out / name).is_file():
            found[name.split("/")[0].split(".")[0]] = digest(load_file(out / name))
    if (out / "mask.safetensors").is_file():
        found["mask"] = digest(dict(SaliencyMask.load(out / "mask.safetensors").indices))
    return found


def figures(report, skipped=("machine", "versions", "config", "processes")):
    """A report without seconds, machine and settings."""
    if isinstance(report, dict):
        return {
            key: figures(value)
            for key, value in report.items()
            if key not in skipped and not key.endswith("_s")
        }
    return [figures(value) for value in report] if isinstance(report, list) else report


def leaves(out, options, *paths, stopped=False):
    """The digests of a run; where it is also `stopped` half-way and resumed, that must not show."""
    run(options, *paths, "--out", out)
    found = digests(out)
    if stopped:
        max(out.glob("checkpoint-*.pt")).unlink()
        for name in ("model", "pipeline"):
            shutil.rmtree(out / name, ignore_errors=True)
        run(options, *paths, "--out", out)
        if digests(out) != found:
            raise RuntimeError(f"resumed, the run ended otherwise: {digests(out)}, not {found}")
    return found


# ---- what runs start from


def root():
    return Path(os.environ["SHORT_RUNS"])


@cache
def data():
    """Noise: 30 training and 9 test images of three classes, 3x8x8."""
    folder = root() / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 30), ("test", 9)):
        pixels = random.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        arrays = {"images": pixels, "labels": np.arange(count) % 3, "class_names": NAMES}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


TEACHER = (
    "train-teacher --config cifar10_teacher --dataset images --data-root DATA "
    "--set network.image_size=8 --set network.channels=4 --set network.channel_mult=[1,2] "
    "--set network.blocks_per_level=1 --set network.norm_num_groups=2 --set batch_size=4 "
)


@cache
def model(kind):
    """A folder with one of two small networks, whose weights depend on their names alone."""
    folder = root() / kind
    if kind == "ddpm":
        run(f"{TEACHER} --iterations 1", "--out", root() / "architecture")
        started = ModelFolder.load(root() / "architecture" / "model")
    else:
        from diffusers import DDPMScheduler, UNet2DModel

        unet = UNet2DModel(
            sample_size=4, in_channels=4, out_channels=4, layers_per_block=1, dropout=0.1,
            block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
            norm_num_groups=4, num_class_embeds=3,
        )  # fmt: skip
        schedule = DDPMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
        started = ModelFolder(unet, schedule, NAMES, patch_size=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, param in sorted(started.unet.named_parameters()):
            scale = name.endswith("weight") and param.ndim == 1  # of a norm
            param.copy_(0.2 * torch.randn(param.shape, generator=generator) + scale)
    ModelFolder(started.unet, started.scheduler, NAMES, started.patch_size).save(folder)
    return folder


# ---- the cases that are more than one erasure


def two_stages(out):
    run(f"erase {model('ddpm')} --config cifar10_stage1 {DISTIL}", "--out", out / "1")
    start = ("--generator", out / "1", "--pseudo-score", out / "1")
    second = f"erase {model('ddpm')} --config cifar10_stage2 {FORGET} --mask random"
    return {"stage1": digests(out / "1"), "stage2": leaves(out / "2", second, *start, stopped=True)}


def concept(out):
    """As the recipe has it: bf16, both networks under a mask, guidance in four places."""
    save_tiny_pipeline(out / "tiny", length=32)
    options = f"erase --recipe object --no-previews {BATCH} {RATES} --set saliency.batches=2"
    words = ("--name", "church", "--override", "barn")
    return leaves(out / "run", options, "--pipeline", out / "tiny", *words, stopped=True)


def concepts_in_fp32(out):
    """Two of them, negative prompts, v-prediction, scales that differ; the mask on one network."""
    save_tiny_pipeline(out / "tiny", prediction_type="v_prediction", length=32)
    options = f"erase --recipe object --no-previews {DISTIL} --set precision=fp32"
    options += " --set mask.apply=generator --set text.guidance.kappa1=1 --set micro_batch=null"
    options += " --set text.guidance.kappa3=2 --set text.negative.kappa4=blurred"
    words = ("--name", "church", "--override", "barn", "--name", "dog", "--override", "cat")
    return leaves(out / "run", options, "--pipeline", out / "tiny", *words)


def train_teacher(out):
    return leaves(out, f"{TEACHER} {LENGTH} --set warmup=2 --without star", stopped=True)


def train_unet2d_teacher(out):
    """The kind of the shipped teacher, on noise in Fashion-MNIST's files."""
    random, files = np.random.default_rng(0), root() / "fashion"
    files.mkdir()
    for name, header, shape in (("images-idx3", 16, (20, 784)), ("labels-idx1", 8, 20)):
        body = random.integers(0, 256 if header == 16 else 10, shape, dtype=np.uint8)
        head = bytes(4) + (20).to_bytes(4, "big") + bytes(header - 8)
        (files / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + body.tobytes()))
    options = (
        "train-teacher --config small_teacher --dataset fashion-mnist --set network.kind=unet2d "
        "--set network.patch_size=2 --set network.channels=8 --set network.channel_mult=[1,1] "
        f"--set network.attention_levels=[] --set loss=mean --set batch_size=4 {LENGTH}"
    )
    return leaves(out, options, "--data-root", files, stopped=True)


def train_classifier(out, options):
    base = f"train-classifier --dataset images --data-root DATA {LENGTH}"
    options = f"{base} --set batch_size=4 {options}"
    run(options, "--out", out)
    found = digest(load_file(out / "model.safetensors"))
    found["statistics"] = digest(load_file(out / STATISTICS))
    return found


def report(out):
    """The demo on fewer images than its command judges, and with the original's judged as well."""
    shipped = Path(pecker_fast.__file__).parent / "data" / "teacher"
    few = "--per-class 3 --teacher-steps 2 --curve-per-class 2 --iterations 3 --set batch_size=2"
    judge = ("--classifier", shipped / "classifier", "--statistics", shipped / STATISTICS)
    mask = "--set saliency.batches=1 --set saliency.batch_size=4"
    run(f"erase {shipped} --config demo {few} {mask}", *judge, "--out", out)
    found = json.loads((out / "report.json").read_text())
    return {**digests(out), "report": figures(found)}


def erasure(out, kind, options):
    return leaves(out, f"erase {model(kind)} {options}", stopped=out.name in STOPPED)


CASES = {
    **{name: (erasure, *arguments) for name, arguments in ERASURES.items()},
    "two_stages": (two_stages,),
    "concept": (concept,),
    "concepts_in_fp32": (concepts_in_fp32,),
    "train_teacher": (train_teacher,),
    "train_unet2d_teacher": (train_unet2d_teacher,),
    "train_small_classifier": (train_classifier, "--arch small --set width=4"),
    "train_resnet34": (train_classifier, "--set width=2 --set warmup=1"),
    "report": (report,),
}


def serve():
    # Blocking is by cache sizes in oneDNN, and NNPACK chooses by processor: MKL is left, which
    # MKL_CBWR holds to one order of addition everywhere.
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what commands print
    print(json.dumps(list(CASES)), file=answers, flush=True)
    for line in sys.stdin:
        function, *arguments = CASES[line.strip()]
        try:
            answer = function(root() / "runs" / line.strip(), *arguments)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
