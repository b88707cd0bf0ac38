"""What the configurations of all methods share: sections, and what every run needs to know."""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pecker_fast.runs.settings import Section, Settings

__all__ = [
    "EmaSection",
    "Fraction",
    "Iterations",
    "LoggingSection",
    "MaskChoice",
    "MaskedConfig",
    "OptimizerSection",
    "RunConfig",
    "learning_rate_factor",
]

Fraction: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Density: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Iterations: TypeAlias = Annotated[int, Field(ge=1, le=10**9)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]


class OptimizerSection(Section):
    """Adam."""

    beta1: Fraction = 0.0  # 0 = no first moment is kept at all.
    beta2: Fraction = 0.999
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0  # Decoupled, as in AdamW.
    clip_value: PositiveFloat | None = 1.0  # Each gradient entry to +-this. null = off.
    release_grads: bool = False  # Free a dense gradient as soon as its salient entries are kept.
    backend: str = "auto"  # auto, or one of `pecker-fast info`.


class MaskChoice(Section):
    """Which entries of a network may change."""

    kind: Literal["saliency", "random", "full"] = "saliency"
    density: Density = 0.5  # Fraction of all entries that may change.
    scope: Literal["global", "per_tensor"] = "global"  # One ranking, or one per parameter.
    granularity: Literal["element", "out_channel", "block", "tensor"] = "element"
    block_size: PositiveInt = 64  # Entries in a block, with granularity block.


class EmaSection(Section):
    """Average of the weights that are trained; of the salient entries, where there is a mask."""

    decay: Fraction | None = 0.9999  # Per iteration. null = off.


class LoggingSection(Section):
    """What is written down and when; changes no result."""

    every: PositiveInt = 10  # Iterations between two readings of the losses.
    checkpoint_every: PositiveInt = 500  # Iterations between two checkpoints.
    tensorboard: bool = False  # Event files in the run directory.


class RunConfig(Settings):
    """What every run needs to know, whatever it trains."""

    iterations: Iterations | None = None
    batch_size: PositiveInt = 128  # Samples of an iteration, of all processes together.
    seed: Seed = 0
    # On CUDA: algorithms that give the same bits each time, so that a killed run ends as it would
    # have. Slower. On a CPU it always does.
    deterministic: bool = False
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # Falls to 0 at the end.
    logging: LoggingSection = LoggingSection()

    @property
    def length(self) -> int:
        """Iterations of the run, once they are known (`ClassifierConfig.resolved`)."""
        if self.iterations is None:
            raise TypeError("the configuration does not say how many iterations the run has")
        return self.iterations

    def rate(self, iteration: int) -> float:
        """What every learning rate is multiplied with at an iteration."""
        return learning_rate_factor(self.lr_schedule, iteration, self.length)


class MaskedConfig(RunConfig):
    """What a run needs to know that changes a model under a mask."""

    # Fused blocks on CUDA, Winograd's convolutions on a CPU: the same method, other rounding.
    accelerate: bool = True
    optimizer: OptimizerSection = OptimizerSection()
    mask: MaskChoice = MaskChoice()
    ema: EmaSection = EmaSection()


def learning_rate_factor(schedule: str, iteration: int, iterations: int) -> float:
    """What the learning rate is multiplied with at an iteration: from 1 down to 0 at the end."""
    progress = iteration / iterations
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
