"""What the processes of test_pipelines.py do, importable by name."""

import torch

from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder

PROMPTS = ["a cat", "a red dog", "", "a cat", "trees", "a lion", "two cats"]


def sample(ranks, folder, count, batch_size):
    """One-step and many-step latents and images of the first `count` prompts."""
    pipeline, prompts = PipelineFolder.load(folder), PROMPTS[:count]
    calls = []  # images of each
    network = pipeline.network.eval()
    network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    one = Sampler(seed=3, batch_size=batch_size).latents(pipeline, prompts, ranks=ranks)
    drawn = list(calls)
    many = Sampler(3, 4, batch_size=batch_size, guidance=2.0)
    images = many.sample(pipeline, prompts, ranks=ranks)
    many = many.latents(pipeline, prompts, ranks=ranks)
    return {"one": one, "many": many, "images": images, "drawn": drawn}


def class_images(ranks, folder, batch_size):
    """Five images of a class model; None on all processes but the first."""
    sampler = Sampler(steps=4, method="ddpm", seed=3, batch_size=batch_size)
    model, labels = ModelFolder.load(folder), torch.tensor([0, 1, 2, 2, 1])
    return sampler.sample(model, labels, ranks=ranks)
