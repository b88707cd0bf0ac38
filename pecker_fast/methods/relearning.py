"""How fast a class that was forgotten is learnt again: attacks that train.

Two of them, both by plain denoising || e - eps(x_t, t, c_f) ||^2 of a few images of the class:
inversion moves the embeddings of the class alone, relearning every parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pecker_fast.distill.losses import pseudo_score_loss
from pecker_fast.distill.networks import model_predictor
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.evaluate.sweep import class_rows
from pecker_fast.models import ModelFolder
from pecker_fast.runs.randomness import TRAINING, IterationRandom

__all__ = ["RATES", "Attack", "attacked"]

Attack = Literal["inversion", "relearning"]
RATES: dict[Attack, float] = {"inversion": 1e-2, "relearning": 2e-4}
"""Learning rates of Adam."""


def attacked(
    model: ModelFolder,
    forget: int,
    images: Tensor,
    attack: Attack,
    steps: Sequence[int],
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> Iterator[tuple[int, ModelFolder]]:
    """The model after some steps of an attack.

    Args:
        model: what forgot; it is not changed.
        forget: index of the class.
        images: (K, C, H, W) images of the class in [-1, 1].
        attack: which.
        steps: after how many steps to stop and look, ascending.
        batch_size: images a step, drawn with replacement.
        seed: of all that is random.

    Yields:
        The number of steps, and the model then; the network is the same one each time.
    """
    network = copy.deepcopy(model.network).eval()
    device = next(network.parameters()).device
    known = model.encode(images.to(device))
    schedule = NoiseSchedule.whole(model.scheduler)
    predict = model_predictor(model, schedule)
    if attack == "inversion":
        network.requires_grad_(False)
        learnt = [rows.requires_grad_(True) for rows in class_rows(network)]
    else:
        learnt = list(network.requires_grad_(True).parameters())
    # The gradient of a row of the table that nobody asked for is 0, and so is Adam's step.
    optimizer = torch.optim.Adam(learnt, lr=RATES[attack])
    labels = torch.full((batch_size,), forget, device=device)
    done = 0
    for stop in steps:
        while done < stop:
            random = IterationRandom(seed, done, device, TRAINING)
            chosen = known[random.integers(0, len(known), batch_size)]
            noise = random.normal(tuple(chosen.shape), chosen.dtype)
            t = random.integers(0, schedule.t_max, batch_size)
            losses = pseudo_score_loss(network, chosen, noise, t, labels, schedule, predict=predict)
            loss = losses.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
        yield done, replace(model, network=network)
