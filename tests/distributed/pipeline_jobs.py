"""What the processes of test_pipelines.py do, importable by name."""

from pathlib import Path

import torch

from pecker_fast.distill import load_config
from pecker_fast.evaluate import pipeline_sampling
from pecker_fast.evaluate.grid import PromptGroup
from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
from pecker_fast.evaluate.previews import Previews
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder

PROMPTS = ["a cat", "a red dog", "", "a cat", "trees", "a lion", "two cats"]
GROUPS = [PromptGroup("to forget", ("a cat", "a red cat"), True), PromptGroup("to keep", ("a", ""))]


def counting(unet):
    """Images of each call of the network, from now on."""
    calls = []
    unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    return calls


def sample(ranks, folder, count, batch_size):
    """One-step and many-step latents and images of the first `count` prompts."""
    pipeline_sampling._LATENT_PIXELS["decoder"] = 2 * 8 * 8  # two images at a time
    pipeline = PipelineFolder.load(folder)
    sampler = PipelineSampler(pipeline, batch_size=batch_size)
    unet, prompts = pipeline.network.eval(), PROMPTS[:count]
    calls = counting(unet)
    one = sampler.latents(unet, prompts, 3, ranks=ranks)
    drawn = list(calls)
    many = sampler.latents(unet, prompts, 4, steps=3, guidance=2.0, ranks=ranks)
    images = sampler.images(many, ranks=ranks)
    return {"one": one, "many": many, "images": images, "drawn": drawn}


def class_images(ranks, folder, batch_size):
    """Five images of a class model; None on all processes but the first."""
    sampler = Sampler(steps=4, method="ddpm", seed=3, batch_size=batch_size)
    model, labels = ModelFolder.load(folder), torch.tensor([0, 1, 2, 2, 1])
    return sampler.sample(model, labels, ranks=ranks)


def preview(ranks, folder, out):
    """A strip of two previews and the comparison at the end, two images at a time."""
    pipeline_sampling._MAX_BATCH = 2
    pipeline = PipelineFolder.load(folder)
    config = load_config("object", names=("cat",), name_overrides=("dog",))
    previews = Previews(pipeline, config, GROUPS, Path(out), torch.device("cpu"), steps=2)
    generator = PipelineFolder.load(folder).network.train()
    calls = counting(generator)
    for iteration in (0, 1):
        previews.show(generator, iteration, ranks)
    assert generator.training
    drawn = list(calls)
    compared = [
        previews.original(previews.texts, ranks),
        previews.erased(generator, previews.texts, ranks),
    ]
    return {"drawn": drawn, "compared": compared if ranks.is_first else None}
