"""How fast what was forgotten is learnt again: attacks that train.

Two of them, both by plain denoising || e - eps(x_t, t, c_f) ||^2 of a few images of the class or
concept: inversion moves the embedding of the class or the prompt alone, relearning every parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pecker_fast.distill.losses import pseudo_score_loss
from pecker_fast.distill.networks import compute_dtype, model_predictor
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.evaluate.sweep import ClassSubject, PromptSubject, Subject, class_rows
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.randomness import TRAINING, IterationRandom

__all__ = ["RATES", "Attack", "attacked", "shots_of"]

Attack = Literal["inversion", "relearning"]
RATES: dict[Attack, float] = {"inversion": 1e-2, "relearning": 2e-4}
"""Learning rates of Adam."""
_ORIGINAL_STEPS = 50


def shots_of(subject: Subject, original: ModelFolder | PipelineFolder, count: int) -> Tensor:
    """Images of what was forgotten that the original draws, from other noise than the attack's.

    Args:
        subject: says what.
        original: the model before, its network where it shall draw.
        count: K.

    Returns:
        (K, C, H, W) as the network sees them.
    """
    if isinstance(subject, PromptSubject):
        assert isinstance(original, PipelineFolder)
        sampler = Sampler(_ORIGINAL_STEPS, subject.seed + 1, guidance=subject.guidance)
        latents = sampler.latents(original, _captions(subject, count))
        assert latents is not None  # one process draws
        return latents
    assert isinstance(subject, ClassSubject) and isinstance(original, ModelFolder)
    labels = torch.full((count,), subject.forget)
    images = Sampler(_ORIGINAL_STEPS, subject.seed + 1).sample(original, labels)
    assert images is not None  # one process draws
    return original.encode(images)


def attacked(
    subject: Subject,
    known: Tensor,
    attack: Attack,
    steps: Sequence[int],
    *,
    batch_size: int = 16,
) -> Iterator[tuple[int, Subject]]:
    """What forgot, after some steps of an attack.

    Args:
        subject: it is not changed.
        known: (K, C, H, W) of `shots_of`.
        attack: which.
        steps: after how many steps to stop and look, ascending.
        batch_size: images a step, drawn with replacement.

    Yields:
        The number of steps, and the subject then; the network is the same one each time.
    """
    if isinstance(subject, PromptSubject):
        model: Any = subject.pipeline
        schedule = NoiseSchedule.whole(subject.pipeline.scheduler_config)
    else:
        assert isinstance(subject, ClassSubject)
        model, schedule = subject.model, NoiseSchedule.whole(subject.model.scheduler)
    # Half-precision weights would not feel steps of 2e-4.
    network = copy.deepcopy(model.network).eval()
    network = nn.Module.to(network, dtype=compute_dtype(network)).requires_grad_(True)
    device = next(network.parameters()).device
    known, learnt = known.to(device), list(network.parameters())
    if isinstance(subject, PromptSubject):
        condition = subject.pipeline.texts.encode(_captions(subject, len(known))).to(device)
        if attack == "inversion":  # of one embedding for all of them
            condition = condition[:1].clone().requires_grad_(True)
            learnt = [condition]
    else:
        condition = torch.full((1,), subject.forget, device=device)
        if attack == "inversion":
            # The gradient of a row of the table that nobody asked for is 0, and so is Adam's step.
            learnt = class_rows(network)
    network.requires_grad_(attack == "relearning")
    for parameter in learnt:
        parameter.requires_grad_(True)
    predict = model_predictor(model, schedule)
    optimizer = torch.optim.Adam(learnt, lr=RATES[attack])
    done = 0
    for stop in steps:
        while done < stop:
            random = IterationRandom(subject.seed, done, device, TRAINING)
            rows = random.integers(0, len(known), batch_size)
            chosen, told = known[rows], condition.expand(len(known), *condition.shape[1:])[rows]
            noise = random.normal(tuple(chosen.shape), chosen.dtype)
            t = random.integers(0, schedule.t_max, batch_size)
            losses = pseudo_score_loss(network, chosen, noise, t, told, schedule, predict=predict)
            loss = losses.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
        taught = replace(model, network=network)
        if isinstance(subject, ClassSubject):
            yield done, replace(subject, model=taught)
        else:
            found = {}
            if attack == "inversion":
                found = dict.fromkeys(subject.asked, condition[0].detach())
            yield done, replace(subject, pipeline=taught, told=found)


def _captions(subject: PromptSubject, count: int) -> list[str]:
    """So many of the concept; where there are fewer, they take turns."""
    return [subject.asked[index % len(subject.asked)] for index in range(count)]
