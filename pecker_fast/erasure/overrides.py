"""What takes the place of a class, where the model or a judge is to choose it."""

from __future__ import annotations

from typing import TypeAlias

import torch

from pecker_fast.distill.conditions import class_pairs
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.networks import compute_dtype, model_predictor
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.redirect import drawn_states
from pecker_fast.models import ModelFolder
from pecker_fast.progress import note
from pecker_fast.runs.randomness import SALIENCY, IterationRandom

__all__ = ["CLASSIFIER", "NEAREST", "with_overrides"]

NEAREST, CLASSIFIER = "nearest", "classifier"
IMAGES = 16  # of the class, behind a choice
STEPS = 10  # of DDIM, in which they are drawn

Config: TypeAlias = PeckerConfig | BaselineConfig


def with_overrides(
    config: Config, model: ModelFolder, judge: Judge | None, device: torch.device
) -> Config:
    """The configuration with the indices of overrides that were left to choose.

    `nearest`: the kept class under which the model predicts most alike, on the way to images of the
    class. `classifier`: the kept class that the judge finds likeliest in such images. A class of
    that name is meant where the model has one.

    Args:
        config: the run.
        model: the original.
        judge: for `classifier`.
        device: where to look; the network is moved there.

    Raises:
        PeckerError: `classifier` without one, or an unknown class.
    """
    pairs = class_pairs(config.forget, config.override)
    words = {NEAREST, CLASSIFIER}.difference(name.lower() for name in model.class_names)
    if not words.intersection(str(instead) for _, instead in pairs):
        return config
    model.network.to(device).eval()
    gone = [model.class_index(forget) for forget, _ in pairs]
    kept = [index for index in range(model.num_classes) if index not in gone]
    if not kept:
        raise PeckerError("forget: all classes of the model; leave one at least that is kept")
    chosen: list[int | str | None] = []
    for index, (_, instead) in zip(gone, pairs, strict=True):
        if instead not in words:
            chosen.append(instead)
            continue
        if instead == NEAREST:
            scores = -_differences(model, index, kept, config.seed, device)
        else:
            scores = _probabilities(model, index, judge, config.seed)[kept]
        chosen.append(kept[int(scores.argmax())])
        names = model.class_names[index], model.class_names[kept[int(scores.argmax())]]
        note(f"override: {instead} to {names[0]} is {names[1]}")
    override = chosen[0] if len(chosen) == 1 else chosen
    return config.model_copy(update={"override": override})


@torch.no_grad()
def _differences(
    model: ModelFolder, forget: int, kept: list[int], seed: int, device: torch.device
) -> torch.Tensor:
    """(len(kept),) mean squares of the difference of predictions."""
    schedule = NoiseSchedule.whole(model.scheduler)
    ask = model_predictor(model, schedule)
    random = IterationRandom(seed, 0, device, SALIENCY)
    labels = torch.full((IMAGES,), forget, device=device)
    noise = random.normal((IMAGES, *model.network_shape), compute_dtype(model.network))
    count = min(STEPS, schedule.usable)
    offset = random.integers(0, schedule.usable // count, IMAGES)
    found = torch.zeros(len(kept), dtype=torch.float64)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return ask(model.network, x, t, labels)

    for x, t, predicted in drawn_states(noise, offset, schedule, count, predict):
        for number, other in enumerate(kept):
            under = ask(model.network, x, t, torch.full_like(labels, other))
            found[number] += float((under - predicted).square().mean()) / count
    return found


def _probabilities(model: ModelFolder, forget: int, judge: Judge | None, seed: int) -> torch.Tensor:
    """(K,) mean probabilities that the judge gives to images of the class."""
    if judge is None or judge.classifier is None:
        raise PeckerError(f"override {CLASSIFIER}: needs one; give --classifier")
    images = Sampler(STEPS, seed).sample(model, torch.full((IMAGES,), forget))
    assert images is not None  # every process draws them all
    logits, _ = classify(judge.classifier, images)
    return logits.softmax(1).mean(0)
