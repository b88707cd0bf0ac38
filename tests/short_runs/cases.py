"""Short runs of every method by the command line, and digests of what they leave on disk.

Run as a program (`make.Session` does) it reads names of cases, one a line, and answers each with a
line of JSON. It knows the package by commands, public names and files only, so that modules can be
moved and merged below it.
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
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tiny_pipeline.py
from pecker_fast_demo import teacher_folder
from tiny_pipeline import save_tiny_pipeline

from pecker_fast import ModelFolder, SaliencyMask
from pecker_fast.cli import main
from pecker_fast.datasets.image_files import load_image_files

ROOT = Path(os.environ["SHORT_RUNS"])  # an empty folder
NAMES = ("circle", "square", "star")
STATISTICS = "statistics.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"

LENGTH = "--iterations 4 --set logging.checkpoint_every=2"
BATCH = f"{LENGTH} --set batch_size=3 --set saliency.batch_size=4"
RATES = "--set generator.lr=1e-3 --set pseudo_score.lr=2e-3 --set saliency.batches=2"
DISTIL = f"{BATCH} {RATES} --set ema.decay=0.5"
FORGET = f"{DISTIL} --forget star --override circle --set generator.lambda_forget=1"
MASKED = f"{FORGET} --mask saliency --density 0.1"
BOTH = f"{MASKED} --set mask.apply=both"
CARRIED = "--set optimizer.beta1=0.5 --set optimizer.weight_decay=0.01"
IMAGES = "--dataset images --data-root DATA"
UNLEARN = f"{BATCH} --forget star {IMAGES}"
METHOD = "--config cifar10_salun --set method="

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
    "recompute": ("unet2d", f"{MASKED} --set recompute=true"),
    "micro_batch": ("ddpm", f"{MASKED} --set micro_batch=2 --set optimizer.release_grads=true"),
    "out_channel": ("unet2d", f"{BOTH} --set mask.granularity=out_channel"),
    "block": ("ddpm", f"{MASKED} --set mask.granularity=block --set mask.scope=per_tensor"),
    "denoise": (
        "ddpm",
        f"{MASKED} --set saliency.kind=fisher_ratio",
    ),
    "refresh": ("ddpm", f"{BOTH} --set mask.refresh_every=1 {CARRIED}"),
    "override_random": ("ddpm", f"{MASKED} --override random"),
    "salun": ("ddpm", f"--config cifar10_salun {UNLEARN} --override circle"),
    "random_label": ("ddpm", f"--config cifar10_salun {UNLEARN} --mask full --set ema.decay=0.5"),
    "neggrad": ("ddpm", f"{METHOD}negative_gradient {UNLEARN}"),
    "finetune": ("ddpm", f"{METHOD}fine_tune {UNLEARN} --set lr_schedule=linear"),
    "redirect": (
        "ddpm",
        f"--config keep_steps {BATCH} --forget star --override circle --set steps=2",
    ),
    "esd": ("ddpm", f"{METHOD}esd {UNLEARN} --mask saliency --density 0.1"),
}
# and resumed
STOPPED = {"pecker", "both", "bf16_both", "refresh", "salun", "random_label", "redirect"}
TEACHER = (
    f"train-teacher --config cifar10_teacher {IMAGES} "
    "--set network.channels=4 --set network.channel_mult=[1,2] --set network.blocks_per_level=1 "
    "--set network.norm_num_groups=2 --set batch_size=4 --set ema.decay=null"
)
CLASSIFIER = f"train-classifier {IMAGES} {LENGTH} --set batch_size=4"


def run(options, *paths):
    """A command line in this process; `paths` are options that may hold blanks."""
    words = [str(data()) if word == "DATA" else word for word in options.split()]
    if main([*words, *map(str, paths), "--device", "cpu", "--threads", "1"]) != 0:
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


def figures(report):
    """The numbers of a report by their names; without words, seconds, machine and settings."""
    if isinstance(report, list):
        return [figures(value) for value in report if not isinstance(value, str)]
    if not isinstance(report, dict):
        return report
    return {
        name: figures(value)
        for name, value in report.items()
        if not (isinstance(value, str) or value is None or name.endswith("_s"))
        and name not in ("machine", "versions", "config", "classes")
    }


def train(out, options, *paths, stopped=False):
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


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).numpy()


@cache
def data():
    """Noise: 30 training and 9 test images of three classes, 3x8x8."""
    folder = ROOT / "data"
    folder.mkdir()
    parts = [noise(6, 3, 8, 8, seed=part) for part in range(5)]
    for name, pixels in (("train", np.concatenate(parts)), ("test", noise(9, 3, 8, 8, seed=5))):
        arrays = {"images": pixels, "labels": np.arange(len(pixels)) % 3}
        np.savez(folder / f"{name}.npz", class_names=np.array(NAMES), **arrays)
    return folder


@cache
def model(kind):
    """A folder with one of two small networks, whose weights depend on their names alone."""
    if kind == "ddpm":
        run(f"{TEACHER} --iterations 1", "--out", ROOT / "architecture")
        started = ModelFolder.load(ROOT / "architecture" / "model")
    else:
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
        for name, param in sorted(started.network.named_parameters()):
            scale = name.endswith("weight") and param.ndim == 1  # of a norm
            param.copy_(0.2 * torch.randn(param.shape, generator=generator) + scale)
    ModelFolder(started.network, started.scheduler, NAMES, started.patch_size).save(ROOT / kind)
    return ROOT / kind


# ---- the cases


def erase(out, kind, options):
    return train(out, f"erase {model(kind)} {options}", stopped=out.name in STOPPED)


def two_stages(out):
    found = train(out / "1", f"erase {model('ddpm')} --config cifar10_stage1 {DISTIL}")
    start = ("--generator", out / "1", "--pseudo-score", out / "1")
    second = f"erase {model('ddpm')} --config cifar10_stage2 {FORGET} --mask random"
    return {"stage1": found, "stage2": train(out / "2", second, *start, stopped=True)}


CLIPPED = "--set saliency.clip_grad_norm=1.0"  # as the recipe was when these runs were recorded


def concept(out):
    """As the recipe has it: bf16, both networks under a mask, guidance in four places."""
    save_tiny_pipeline(out / "tiny", length=32)
    options = f"erase --recipe object --no-previews {BATCH} {RATES} {CLIPPED}"
    words = ("--name", "church", "--override", "barn", "--pipeline", out / "tiny")
    return train(out / "run", options, *words, stopped=True)


def concepts_in_fp32(out):
    """Two of them, negative prompt, v-prediction, scales that differ, one mask; previews."""
    save_tiny_pipeline(out / "tiny", prediction_type="v_prediction", length=32)
    options = f"erase --recipe object --teacher-steps 2 {DISTIL} --set precision=fp32 {CLIPPED}"
    options += " --set mask.apply=generator --set text.guidance.kappa1=1 --set micro_batch=null"
    options += " --set text.guidance.kappa3=2 --set text.negative.remain.kappa4=blurred"
    options += " --set text.negative.forget.kappa4=blurred"
    words = ("--name", "church", "--override", "barn", "--name", "dog", "--override", "cat")
    found = train(out / "run", options, *words, "--pipeline", out / "tiny")
    return {**found, "previews": digest(load_file(out / "run" / "previews.safetensors"))}


def train_teacher(out):
    return train(out, f"{TEACHER} {LENGTH} --set warmup=2 --without star", stopped=True)


def train_unet2d_teacher(out):
    """The kind of the shipped teacher, on noise in Fashion-MNIST's files."""
    pixels, labels = noise(20, 784), noise(20) % 10
    heads = {"images-idx3": (pixels, 2051, 20, 28, 28), "labels-idx1": (labels, 2049, 20)}
    for name, (body, *numbers) in heads.items():
        head = b"".join(number.to_bytes(4, "big") for number in numbers)
        (ROOT / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + body.tobytes()))
    options = (
        "train-teacher --config small_teacher --dataset fashion-mnist --set network.kind=unet2d "
        "--set network.patch_size=2 --set network.channels=8 --set network.channel_mult=[1,1] "
        f"--set network.attention_levels=[] --set loss=mean --set batch_size=4 {LENGTH} "
        "--set ema.decay=0.5"
    )
    return train(out, options, "--data-root", ROOT, stopped=True)


def train_classifier(out, options):
    run(f"{CLASSIFIER} {options}", "--out", out)
    known = load_file(out / STATISTICS)
    early = {name: known.pop(name) for name in [*known] if name.startswith("early_")}
    parts = {"model": load_file(out / "model.safetensors"), "statistics": known, "early": early}
    return {name: digest(tensors) for name, tensors in parts.items()}


def report(out):
    """The shipped model in one stage, on few images, those of the original judged too."""
    shipped = teacher_folder()
    few = "--per-class 3 --teacher-steps 2 --curve-per-class 2 --iterations 3 --set batch_size=2"
    judge = ("--classifier", shipped / "classifier", "--statistics", shipped / STATISTICS)
    mask = (
        "--density 0.1 --set mask.apply=generator --set saliency.batches=1 "
        "--set saliency.batch_size=4 --set ema.decay=0.5"
    )
    loss = " ".join(
        f"--set {network}.lr=2e-4 --set {network}.lambda_remain=1 --set {network}.lambda_forget=1"
        for network in ("generator", "pseudo_score")
    )
    options = f"--forget 9 --override 8 {few} {mask} {loss} --set lr_schedule=cosine"
    run(f"erase {shipped} {options}", *judge, "--out", out)
    return {**digests(out), "report": figures(json.loads((out / "report.json").read_text()))}


def images(folder):
    found = load_image_files(folder)  # class by class, as they were asked for
    return digest({"images": found.images, "labels": found.labels})


def sample_and_evaluate(out):
    """Every sampler; the figures of what the last of them draws."""
    run(f"{CLASSIFIER} --arch small --set width=4", "--out", out / "classifier")
    samplers = {
        "one_step": "--sampler one-step --t-init 440",
        "ddim": "--sampler ddim --steps 3 --guidance 2",
        "ddpm": "--sampler ddpm --steps 4",
    }
    found = {}
    for name, options in samplers.items():
        run(f"sample {model('ddpm')} --per-class 2 {options}", "--out", out / name)
        found[name] = images(out / name)
    judge = ("--classifier", out / "classifier", "--json", out / "figures.json")
    options = f"--forget star --override circle --per-class 4 {samplers['ddpm']}"
    run(f"evaluate {model('ddpm')} {options}", *judge)
    return {**found, "evaluation": figures(json.loads((out / "figures.json").read_text()))}


CASES = {
    **{name: (erase, *arguments) for name, arguments in ERASURES.items()},
    "two_stages": (two_stages,),
    "concept": (concept,),
    "concepts_in_fp32": (concepts_in_fp32,),
    "train_teacher": (train_teacher,),
    "train_unet2d_teacher": (train_unet2d_teacher,),
    "train_small_classifier": (train_classifier, "--arch small --set width=4"),
    "train_resnet34": (train_classifier, "--set width=2 --set warmup=1"),
    "report": (report,),
    "sample_and_evaluate": (sample_and_evaluate,),
}


def serve():
    # oneDNN blocks by the size of caches and NNPACK chooses by the processor. That leaves MKL,
    # which MKL_CBWR holds to one order of addition everywhere.
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for what commands print
    print(json.dumps(list(CASES)), file=answers, flush=True)
    for line in sys.stdin:
        function, *arguments = CASES[line.strip()]
        try:
            answer = function(ROOT / "runs" / line.strip(), *arguments)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
