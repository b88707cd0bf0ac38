"""The noise schedule: a_t, b_t and the three time constants of the method.

`x_t = a_t x_0 + b_t e` with `a_t = sqrt(abar_t)`, `b_t = sqrt(1 - abar_t)` and
`abar_t = prod_{i <= t} (1 - beta_i)`. Everything is computed in float64 from the betas and rounded
once, to the dtype of the images it meets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["NoiseSchedule"]


class NoiseSchedule:
    """The variance-preserving schedule of a noise-predicting diffusion model. Immutable.

    Attributes:
        alphas_cumprod: (T,) float64, abar_t for t = 0 .. T-1, on the CPU.
        t_init: The time step at which the one-step generator starts from pure noise.
        t_min: First time step of the training noise, inclusive.
        t_max: Last time step of the training noise, exclusive.
    """

    def __init__(
        self, alphas_cumprod: Tensor, *, t_init: int = 440, t_min: int = 38, t_max: int = 712
    ) -> None:
        """Check and keep the schedule.

        Args:
            alphas_cumprod: (T,) float64, strictly inside (0, 1) and falling.
            t_init: Default: CIFAR-10 with linear betas, sigma 2.50. Stable Diffusion uses 625.
            t_min: Default: sigma 0.137. Stable Diffusion uses 20.
            t_max: Default: sigma 13.0 at t_max - 1. Stable Diffusion uses 980.

        Raises:
            PeckerError: The schedule is not a falling sequence in (0, 1), or a time constant is
                outside it.
        """
        if alphas_cumprod.dtype != torch.float64 or alphas_cumprod.dim() != 1:
            raise PeckerError(
                "alphas_cumprod must be a one-dimensional float64 tensor, got "
                f"{alphas_cumprod.dim()} dimensions of {alphas_cumprod.dtype}"
            )
        inside = bool(((alphas_cumprod > 0) & (alphas_cumprod < 1)).all())
        if not inside or bool((alphas_cumprod.diff() >= 0).any()) or len(alphas_cumprod) == 0:
            raise PeckerError(
                "alphas_cumprod must fall strictly and stay inside (0, 1); this schedule does not"
            )
        steps = len(alphas_cumprod)
        if not 0 <= t_init < steps:
            raise PeckerError(f"t_init must be in 0 .. {steps - 1}, got {t_init}")
        if not 0 <= t_min < t_max <= steps:
            raise PeckerError(
                f"expected 0 <= t_min < t_max <= {steps}, got t_min {t_min} and t_max {t_max}"
            )
        self.alphas_cumprod = alphas_cumprod.detach().cpu().clone()
        self.t_init = t_init
        self.t_min = t_min
        self.t_max = t_max
        # One copy of (a, b) per device and dtype: looking a time step up moves no data.
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_betas(cls, betas: Tensor, **constants: int) -> NoiseSchedule:
        """The schedule of these betas, (T,) of any float dtype; `constants` as in `__init__`."""
        return cls(torch.cumprod(1.0 - betas.to(torch.float64), dim=0), **constants)

    @classmethod
    def from_scheduler(cls, scheduler: Any, **constants: int) -> NoiseSchedule:
        """The schedule of a model that predicts noise, from its diffusers scheduler.

        As `from_scheduler_config`.

        Raises:
            PeckerError: Not a noise predictor, or betas of a kind that is not known here.
        """
        prediction = scheduler.config.get("prediction_type", "epsilon")
        if prediction != "epsilon":
            raise PeckerError(
                f"the teacher's scheduler has prediction_type {prediction!r}; the distillation "
                "needs a model that predicts the noise ('epsilon')"
            )
        return cls.from_scheduler_config(scheduler.config, **constants)

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any], **constants: int) -> NoiseSchedule:
        """The schedule that a diffusers scheduler's configuration describes.

        The betas are rebuilt in float64 from the configuration; the scheduler's own table is
        float32. Whether it clips samples plays no part: it is not asked to step.

        Args:
            config: A diffusers scheduler's `config`, or what its file holds.
            constants: `t_init`, `t_min`, `t_max`.

        Raises:
            PeckerError: Betas of a kind that is not known here.
        """
        if config.get("rescale_betas_zero_snr"):
            raise PeckerError(
                "the teacher's scheduler sets rescale_betas_zero_snr, which leaves no signal at "
                "the last time step: the distillation cannot divide by it"
            )
        start, end = config["beta_start"], config["beta_end"]
        steps = config["num_train_timesteps"]
        if config.get("trained_betas") is not None:
            betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
        elif config["beta_schedule"] == "linear":
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        elif config["beta_schedule"] == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        else:
            raise PeckerError(
                f"the teacher's scheduler has beta_schedule {config['beta_schedule']!r}; known "
                "are 'linear' and 'scaled_linear', or pass NoiseSchedule.from_betas"
            )
        return cls.from_betas(betas, **constants)

    @property
    def num_timesteps(self) -> int:
        """T, the number of time steps."""
        return len(self.alphas_cumprod)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and b_t, ready to multiply images.

        Args:
            t: (N,) int64 time steps, on the device of `like`.
            like: (N, C, H, W) images whose dtype and number of dimensions the result takes.

        Returns:
            (a, b), each (N, 1, 1, 1) in the dtype of `like`.
        """
        key = (like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = (
                self.alphas_cumprod.sqrt().to(like.device, like.dtype),
                (1.0 - self.alphas_cumprod).sqrt().to(like.device, like.dtype),
            )
        a, b = self._tables[key]
        shape = (-1,) + (1,) * (like.dim() - 1)
        return a[t].view(shape), b[t].view(shape)

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a_t x + b_t noise; x and noise (N, C, H, W), t (N,) int64."""
        a, b = self.coefficients(t, x)
        return a * x + b * noise

    def denoised(self, x_t: Tensor, predicted_noise: Tensor, t: Tensor) -> Tensor:
        """The clean image that a noise prediction implies: (x_t - b_t eps) / a_t. No clamping."""
        a, b = self.coefficients(t, x_t)
        return (x_t - b * predicted_noise) / a
