"""What the processes of test_pipelines.py do, importable by name."""

from pathlib import Path

import torch

from pecker_fast.distill import load_config
from pecker_fast.evaluate import sampling
from pecker_fast.evaluate.grid import PromptGroup
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
    pipeline, prompts = PipelineFolder.load(folder), PROMPTS[:count]
    calls = counting(pipeline.network.eval())
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


def preview(ranks, folder, out):
    """A strip of two previews and the comparison at the end, two images at a time."""
    sampling._MAX_BATCH = 2
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
