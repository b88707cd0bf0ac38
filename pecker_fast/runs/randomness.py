"""All random numbers of an iteration, from (seed, iteration) alone.

Nothing is carried from one iteration to the next, so a run that is resumed at iteration i draws
exactly what the uninterrupted run drew there, without any generator state in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SALIENCY", "TRAINING", "IterationRandom", "same_algorithms"]

TRAINING, SALIENCY = 0, 1  # What the numbers are for: one iteration may need both.


class IterationRandom:
    """The random streams of one iteration on one device.

    Attributes:
        iteration: Which one.
        generator: On the device: noise, time steps, labels.
        host: On the CPU: choices that the host must know, such as which prompts to fetch.
        device: The device.
    """

    def __init__(
        self, seed: int, iteration: int, device: torch.device, purpose: int, rank: int = 0
    ) -> None:
        """Derive the streams from (seed, iteration, `TRAINING` or `SALIENCY`).

        All processes draw the same batch, of which each takes its rows; but torch's global
        generators, from which dropout draws, differ by rank.
        """
        draws, dropout, choices = _words(seed, iteration, purpose)
        self._global_seed = dropout if rank == 0 else _words(seed, iteration, purpose, rank)[1]
        self.generator = torch.Generator(device).manual_seed(draws)
        self.host = torch.Generator().manual_seed(choices)
        self.device = device
        self.iteration = iteration

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Standard normal numbers of this shape and dtype."""
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype)

    def integers(self, low: int, high: int, count: int) -> Tensor:
        """(count,) int64, uniform over low .. high - 1."""
        return torch.randint(low, high, (count,), generator=self.generator, device=self.device)

    def coins(self, count: int, probability: float) -> Tensor:
        """(count,) bool, True with this probability."""
        return self.uniform(count) < probability

    def uniform(self, count: int) -> Tensor:
        """(count,) float32, uniform over [0, 1)."""
        return torch.rand(count, generator=self.generator, device=self.device)

    @contextmanager
    def global_streams(self) -> Iterator[None]:
        """Seed torch's global generators (dropout draws from them) and restore them afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._global_seed)
            yield


@contextmanager
def same_algorithms(wanted: bool) -> Iterator[None]:
    """Have torch and cuDNN compute the same bits each time, where they can; torch warns elsewhere.

    On CUDA some gradients are otherwise summed in the order in which threads arrive. Set
    CUBLAS_WORKSPACE_CONFIG=:4096:8 before the first product: cuBLAS reads it once.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    filling: Any = torch.utils.deterministic  # untyped in torch
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    flags = cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = True, False, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = flags


def _words(*entropy: int) -> list[int]:
    """Three independent seeds."""
    words = np.random.SeedSequence(list(entropy)).generate_state(3, np.uint64)
    # torch.Generator takes 64 bits, of which CPython passes 63 without a sign.
    return [int(word) >> 1 for word in words]
