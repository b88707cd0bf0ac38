"""A small text-to-image network and a text encoder that hashes words."""

import zlib

import torch
from tiny_pipeline import WIDTH, tiny_text_unet

from pecker_fast.distill import NoiseSchedule, Objective, load_config
from pecker_fast.distill.networks import diffusers_predictor
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.models.architectures.stable_diffusion import StableDiffusion
from pecker_fast.runs.randomness import TRAINING, IterationRandom

LENGTH = 6
TEXT = {
    "remain": ["a red ball", "a blue car", "a green tree"],
    "concepts": [
        {"prompts": ["a photo of {concept}", "{concept} in {place}"], "concept": "a cat",
         "override": "a dog", "fill": {"place": ["rain", "snow"]}},
    ],
}  # fmt: skip


def drawn_at(iteration, seed=0):
    """The random numbers of an iteration."""
    return IterationRandom(seed, iteration, torch.device("cpu"), TRAINING)


def encode(prompts):
    """(P, 6, 8): one row per word, the same for the same word."""
    table = torch.zeros(len(prompts), LENGTH, WIDTH)
    for row, prompt in zip(table, prompts, strict=True):
        for slot, word in enumerate(prompt.split()[:LENGTH]):
            generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
            row[slot] = torch.randn(WIDTH, generator=generator)
    return table


def text_unet(dropout=0.0):
    torch.manual_seed(4)
    return tiny_text_unet(dropout)


def text_objective(overrides=None, text=None, *, dtype=torch.float32, prediction="epsilon"):
    settings = {
        "iterations": 4,
        "batch_size": 3,
        "generator.lr": 1e-3,
        "pseudo_score.lr": 1e-3,
        "generator.lambda_forget": 1.0,
        "pseudo_score.lambda_forget": 1.0,
        "alpha": 1.0,
        "diffusion": {"t_init": 625, "t_min": 20, "t_max": 980},
        "mask.density": 0.3,
        "saliency.batches": 1,
        "saliency.batch_size": 2,
        "ema.decay": None,
        "logging.every": 1,
        "text": TEXT | (text or {}),
        **(overrides or {}),
    }
    config = load_config(None, settings)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule = NoiseSchedule.from_betas(betas, **config.diffusion.model_dump())
    conditions = TextConditions(config.text, encode, config.seed)
    predict = diffusers_predictor(schedule, StableDiffusion().call, prediction)
    return Objective(
        text_unet().to(dtype),
        schedule,
        conditions,
        config,
        (2, 8, 8),
        predict=conditions.predictors(predict),
    )
