"""What an iteration of training on real images sees: which images, at which time steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.runs.randomness import IterationRandom

__all__ = ["ShuffledEpochs", "timesteps"]

_MOST = 2**24  # Images per iteration; their order alone would take hours otherwise.


class ShuffledEpochs:
    """Which of N images an iteration takes: all of them in random order, then again in another.

    Batches are always full: one that begins at the end of an epoch goes on in the next. Iteration i
    is computed from the seed alone, so a run can be resumed anywhere.
    """

    def __init__(self, count: int, batch_size: int, seed: int, stream: int = 0) -> None:
        """Describe the order.

        Args:
            count: N.
            batch_size: Images per iteration; may exceed N.
            seed: The run's seed.
            stream: Tells orders under one seed apart.

        Raises:
            PeckerError: More images per iteration than any memory holds.
        """
        if batch_size > _MOST:
            raise PeckerError(f"batch_size {batch_size:,}: must be at most {_MOST:,}")
        self._count = count
        self._batch_size = batch_size
        self._key = (seed, stream)
        self._permutations: dict[int, Tensor] = {}  # Of the epochs that the last batch touched.

    def indices(self, iteration: int) -> Tensor:
        """(batch_size,) int64 on the CPU: the images of an iteration."""
        first = iteration * self._batch_size
        last = first + self._batch_size
        epochs = range(first // self._count, (last - 1) // self._count + 1)
        self._permutations = {epoch: self._permutation(epoch) for epoch in epochs}
        parts = [
            permutation[max(first - epoch * self._count, 0) : last - epoch * self._count]
            for epoch, permutation in self._permutations.items()
        ]
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch in self._permutations:
            return self._permutations[epoch]
        words = np.random.SeedSequence([*self._key, epoch]).generate_state(1, np.uint64)
        # torch.Generator takes 64 bits, of which CPython passes 63 without a sign.
        generator = torch.Generator().manual_seed(int(words[0]) >> 1)
        return torch.randperm(self._count, generator=generator)


def timesteps(
    count: int, num_timesteps: int, random: IterationRandom, *, logit_normal: bool = False
) -> Tensor:
    """(count,) int64 over 0 .. T - 1 on the device, in pairs t and T - 1 - t.

    Args:
        count: How many.
        num_timesteps: T.
        random: Draws them.
        logit_normal: The logits of t / T are standard normal (Stable Diffusion 3). Otherwise t is
            uniform.
    """
    half = count // 2 + 1
    if logit_normal:
        share = random.normal((half,), torch.float32).sigmoid()
        drawn = (share * num_timesteps).long().clamp(max=num_timesteps - 1)
    else:
        drawn = random.integers(0, num_timesteps, half)
    return torch.cat([drawn, num_timesteps - 1 - drawn])[:count]
