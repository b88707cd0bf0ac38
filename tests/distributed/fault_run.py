"""The small run that the tests of faults disturb."""

import torch
from tiny_models import tiny_scheduler, tiny_unet
from toys import assert_same_bits

from pecker_fast.distill import RunDirectory
from pecker_fast.models import ModelFolder


def build(path, seed=0):
    torch.manual_seed(seed)
    unet = tiny_unet()
    ModelFolder(unet, tiny_scheduler(), ("circle", "square", "star")).save(path)
    return path


def erase(model, out, *more, iterations=6):
    return [
        "erase", model, "--out", out, "--forget", "star", "--override", "circle",
        "--density", "0.2", "--iterations", iterations, "--set", "batch_size=2",
        "--set", "saliency.batches=1", "--set", "saliency.batch_size=2",
        "--set", "logging.checkpoint_every=2", "--set", "logging.every=2",
        "--set", "generator.lr=1e-3", "--device", "cpu", "--threads", "1", *more,
    ]  # fmt: skip


def state(out):
    with RunDirectory(out) as directory:
        return directory.load()


def same_training(left, right):
    """The same bits in all that is trained; wall time differs."""
    for part in ("iteration", "mask", "networks", "generator", "pseudo_score", "ema"):
        assert_same_bits(left[part], right[part])
