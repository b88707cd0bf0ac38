"""A small network with every kind of parameter, scores for it, and a mask of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pecker_fast.masks.mask import SaliencyMask


@pytest.fixture
def make_model():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3, bias=False), nn.Linear(5, 7)
        )

    return make


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def scores(model):
    generator = torch.Generator().manual_seed(0)
    named = model.named_parameters()
    return {name: torch.rand(param.shape, generator=generator) for name, param in named}


@pytest.fixture
def mask(scores):
    return SaliencyMask.from_scores(scores, 0.3)
