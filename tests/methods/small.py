"""A small model, twelve images a class and short runs, for the tests of the baselines."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from tiny_pipeline import save_tiny_pipeline
from toys import ToyDenoiser

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.methods.config import load_baseline_config
from pecker_fast.methods.real_images import BaselineObjective
from pecker_fast.methods.redirect import RedirectObjective
from pecker_fast.methods.trainer import BaselineTrainer
from pecker_fast.models.architectures.class_networks import UNetNetwork
from pecker_fast.models.pipeline import PipelineFolder

NAMES = ("circle", "square", "star", "cross")
PER_CLASS = 11


@dataclass
class SmallModel:
    """What a ModelFolder is to the baselines, around a ToyDenoiser."""

    architecture = UNetNetwork()
    prediction_type = "epsilon"

    network: torch.nn.Module
    scheduler: DDPMScheduler
    class_names: tuple[str, ...] = NAMES
    image_shape: tuple[int, int, int] = (1, 8, 8)
    network_shape: tuple[int, int, int] = (1, 8, 8)
    null_label: int | None = 4

    def encode(self, images):
        return images

    def about_network(self):
        return {"class names": self.class_names, "null label": self.null_label}


def small_model(dtype=torch.float32, dropout=0.1, null_label=4):
    torch.manual_seed(0)
    network = ToyDenoiser(num_classes=4 if null_label is None else 5, dropout=dropout).to(dtype)
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
    return SmallModel(network, scheduler, null_label=null_label)


def small_images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat(PER_CLASS)
    pixels = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, labels, NAMES, "noise")


def small_config(overrides=None, method="random_label"):
    settings = {
        "method": method,
        "iterations": 6,
        "batch_size": 5,
        "optimizer.lr": 1e-3,
        "lambda_remain": 0.1,
        "mask.kind": "saliency",
        "mask.density": 0.3,
        "saliency.batch_size": 4,
        "logging.every": 2,
        "logging.checkpoint_every": 3,
        **(overrides or {}),
    }
    return load_baseline_config(None, settings)


def small_objective(overrides=None, method="random_label", *, images=None, model=None, **model_of):
    return BaselineObjective(
        model or small_model(**model_of),
        small_images() if images is None else images,
        small_config(overrides, method),
    )


def small_redirection(overrides=None, *, model=None, **model_of):
    settings = {"forget": 2, "override": 1, "steps": 4, "saliency.batches": 1, **(overrides or {})}
    config = small_config(settings, "redirect")
    return RedirectObjective(model or small_model(**model_of), config)


TEXT = {
    "remain": ["a red car", "a blue car"],
    "concepts": [
        {"prompts": ["a {concept}", "one {concept}"], "concept": "cat", "override": "dog"},
        {"prompts": ["a {concept}"], "concept": "cow", "override": "pig", "weight": 0.5},
    ],
    "dropout": 0.25,
}  # fmt: skip


def small_redirection_of_prompts(folder, overrides=None):
    """The same of a tiny pipeline in float64, which is written to `folder`."""
    save_tiny_pipeline(folder)
    pipeline = PipelineFolder.load(folder)
    pipeline.network.double()
    settings = {"text": TEXT, "steps": 4, "saliency.batches": 1, **(overrides or {})}
    return RedirectObjective(pipeline, small_config(settings, "redirect"))


def train(objective, **options):
    """Train to the end; returns the trainer and the metrics of all iterations."""
    trainer = BaselineTrainer(objective, **options)
    return trainer, list(trainer.run())
