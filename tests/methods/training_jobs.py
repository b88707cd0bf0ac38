"""What tests of training run in other processes; importable by name there."""

import torch

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.methods.teacher import TeacherTrainer
from pecker_fast.methods.training_config import TeacherConfig

CPU = torch.device("cpu")

TINY = {
    "iterations": 6,
    "batch_size": 6,
    "lr": 1e-3,
    "network": {
        "channels": 4,
        "channel_mult": [1, 2],
        "attention_levels": [1],
        "blocks_per_level": 1,
        "norm_num_groups": 2,
        "dropout": 0.0,
    },
    "ema": {"decay": 0.5},
    "logging": {"every": 2, "checkpoint_every": 2},
}


def tiny_config(**changes):
    return TeacherConfig.model_validate({**TINY, **changes})


def tiny_images(count=40, classes=3, side=8):
    """Each class has a colour of its own; left and right halves differ."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 60, (count, 3, side, side), generator=generator)
    pixels[torch.arange(count), labels % 3] += 120
    pixels[..., : side // 2] += 70
    names = tuple(f"colour {index}" for index in range(classes))
    return ImageSet(pixels.to(torch.uint8), labels, names, "colours")


def train_tiny(ranks, changes, directory=None):
    """The weights of a short run, by name."""
    trainer = TeacherTrainer(
        tiny_images(), tiny_config(**changes), CPU, ranks=ranks, directory=directory
    )
    list(trainer.run())
    return dict(trainer.model().network.state_dict())
