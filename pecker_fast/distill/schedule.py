"""The noise schedule: a_t, b_t and the three time constants of the method.

`x_t = a_t x_0 + b_t e`. Diffusion models preserve the variance: `a_t = sqrt(abar_t)` and
`b_t = sqrt(1 - abar_t)` with `abar_t = prod_{i <= t} (1 - beta_i)`. Rectified flows go straight:
`a_t = 1 - sigma_t` and `b_t = sigma_t`. Everything is computed in float64 and rounded once, to the
dtype of the images it meets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError

__all__ = ["NoiseSchedule", "is_flow"]

_SIGMA_INIT, _SIGMA_MIN, _SIGMA_MAX = 2.5, 0.1375, 13.0
"""b / a where a one-step generator starts and where training noise begins and ends (SiD): t 440, 38
and 711 of CIFAR-10's schedule, 625, 20 and 979 of Stable Diffusion's."""


class NoiseSchedule:
    """How noisy the images of each time step are. Immutable.

    Attributes:
        signal: (T,) float64, a_t for t = 0 .. T-1, falling, on the CPU. The last may be 0.
        noise: (T,) float64, b_t, rising.
        flow: A rectified flow: networks predict e - x_0, and are told 1000 b_t.
        t_init: The time step at which the one-step generator starts from pure noise.
        t_min: First time step of the training noise, inclusive.
        t_max: Last time step of the training noise, exclusive.
    """

    def __init__(
        self,
        signal: Tensor,
        noise: Tensor,
        *,
        flow: bool = False,
        t_init: int | None = None,
        t_min: int | None = None,
        t_max: int | None = None,
    ) -> None:
        """Check and keep the schedule; see the attributes.

        Time constants that are None are where b / a is nearest to 2.5, to 0.1375, and behind where
        it is nearest to 13: 440, 38 and 712 with CIFAR-10's betas.

        Raises:
            PeckerError: The signal does not fall from below 1 to 0, or a time constant is outside
                of the steps that have some.
        """
        if any(part.dtype != torch.float64 or part.dim() != 1 for part in (signal, noise)):
            raise PeckerError(
                "signal and noise must be one-dimensional float64 tensors, got "
                f"{signal.dim()} and {noise.dim()} dimensions of {signal.dtype} and {noise.dtype}"
            )
        inside = bool(((signal >= 0) & (signal < 1)).all()) and bool((noise > 0).all())
        if not inside or bool((signal.diff() >= 0).any()) or len(signal) == 0:
            raise PeckerError(
                "the share of the image must fall strictly and stay inside [0, 1); this schedule's "
                "does not"
            )
        # What is pure noise has no image to predict.
        steps = self.usable = int((signal > 0).sum())

        def nearest(sigma: float) -> int:
            return int((noise[:steps] / signal[:steps] - sigma).abs().argmin())

        t_init = nearest(_SIGMA_INIT) if t_init is None else t_init
        t_min = nearest(_SIGMA_MIN) if t_min is None else t_min
        t_max = nearest(_SIGMA_MAX) + 1 if t_max is None else t_max
        if not 0 <= t_init < steps:
            raise PeckerError(f"t_init must be in 0 .. {steps - 1}, got {t_init}")
        if not 0 <= t_min < t_max <= steps:
            raise PeckerError(
                f"expected 0 <= t_min < t_max <= {steps}, got t_min {t_min} and t_max {t_max}"
            )
        self.signal = signal.detach().cpu().clone()
        self.noise = noise.detach().cpu().clone()
        self.flow = flow
        self.t_init = t_init
        self.t_min = t_min
        self.t_max = t_max
        # One copy of (a, b) per device and dtype: looking a time step up moves no data.
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor, **constants: Any) -> NoiseSchedule:
        """Variance-preserving, of abar_t, (T,) float64; `constants` as in `__init__`."""
        return cls(alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt(), **constants)

    @classmethod
    def rectified_flow(
        cls, steps: int = 1000, shift: float = 1.0, **constants: Any
    ) -> NoiseSchedule:
        """Sigma from 1 / steps to 1, as diffusers' `FlowMatchEulerDiscreteScheduler` has it.

        Args:
            steps: T.
            shift: Larger ones draw sigma towards 1: shift u / (1 + (shift - 1) u); 3 for Stable
                Diffusion 3.
            constants: As in `__init__`.
        """
        u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        sigma = shift * u / (1 + (shift - 1) * u)
        return cls(1 - sigma, sigma, flow=True, **constants)

    @classmethod
    def from_betas(cls, betas: Tensor, **constants: Any) -> NoiseSchedule:
        """The schedule of these betas, (T,) of any float dtype; `constants` as in `__init__`."""
        alphas = torch.cumprod(1.0 - betas.to(torch.float64), dim=0)
        return cls.from_alphas_cumprod(alphas, **constants)

    @classmethod
    def from_scheduler(cls, scheduler: Any, **constants: Any) -> NoiseSchedule:
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
    def from_scheduler_config(cls, config: Mapping[str, Any], **constants: Any) -> NoiseSchedule:
        """The schedule that a diffusers scheduler's configuration describes.

        The betas are rebuilt in float64 from the configuration; the scheduler's own table is
        float32. Whether it clips samples plays no part: it is not asked to step. Of a flow whose
        shift depends on the number of pixels the time steps are spaced without it.

        Args:
            config: A diffusers scheduler's `config`, or what its file holds.
            constants: `t_init`, `t_min`, `t_max`.

        Raises:
            PeckerError: Betas of a kind that is not known here, or a noise predictor that is asked
                where there is no signal.
        """
        steps = config["num_train_timesteps"]
        if is_flow(config):
            shift = config.get("shift", 1.0)
            dynamic = config.get("use_dynamic_shifting", False)
            return cls.rectified_flow(steps, 1.0 if dynamic else shift, **constants)
        start, end = config["beta_start"], config["beta_end"]
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
        if not config.get("rescale_betas_zero_snr"):
            return cls.from_betas(betas, **constants)
        if config.get("prediction_type", "epsilon") != "v_prediction":
            raise PeckerError(
                "the teacher's scheduler sets rescale_betas_zero_snr for a network that predicts "
                "the noise, which leaves nothing to predict at the last time step; expected "
                "prediction_type 'v_prediction'"
            )
        # Lin et al. 2023, algorithm 1: shifted so that the last is 0, the first as it was.
        root = torch.cumprod(1.0 - betas, dim=0).sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return cls.from_alphas_cumprod(root**2, **constants)

    @classmethod
    def whole(cls, scheduler: Any) -> NoiseSchedule:
        """For training at every time step that has a signal, of a scheduler or its `config`."""
        make = cls.from_scheduler_config if isinstance(scheduler, Mapping) else cls.from_scheduler
        schedule = make(scheduler, t_min=0, t_max=1)
        schedule.t_max = schedule.usable
        return schedule

    @property
    def num_timesteps(self) -> int:
        """T, the number of time steps."""
        return len(self.signal)

    def identity(self) -> Tensor:
        """What tells it from another schedule."""
        return torch.stack([self.signal, self.noise])

    def times(self, t: Tensor, like: Tensor) -> Tensor:
        """What a network is told of time steps t, (N,): t itself, or 1000 sigma of a flow."""
        return 1000 * self.coefficients(t, like)[1].flatten() if self.flow else t

    def weighted(self, losses: Tensor, t: Tensor) -> Tensor:
        """||e - e'||^2 in the norm that the network was trained with: of a flow ||v - v'||^2.

        With v = e - x_0 and the same x_t, e - e' = a (v - v').

        Args:
            losses: (N,) squared differences of predicted noise.
            t: (N,) int64 time steps.
        """
        return losses / self.coefficients(t, losses)[0] ** 2 if self.flow else losses

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and b_t, ready to multiply images.

        Args:
            t: (N,) int64 time steps, on the device of `like`.
            like: (N, C, H, W) images whose dtype and number of dimensions the result takes.

        Returns:
            (a, b), each (N, 1, 1, 1) in the dtype of `like`.
        """
        a, b = self.tables(like.device, like.dtype)
        shape = (-1,) + (1,) * (like.dim() - 1)
        return a[t].view(shape), b[t].view(shape)

    def tables(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a_t and b_t of all time steps, (T,) each, made once and kept."""
        key = (device, dtype)
        if key not in self._tables:
            self._tables[key] = self.signal.to(device, dtype), self.noise.to(device, dtype)
        return self._tables[key]

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a_t x + b_t noise; x and noise (N, C, H, W), t (N,) int64."""
        a, b = self.coefficients(t, x)
        return a * x + b * noise

    def denoised(self, x_t: Tensor, predicted_noise: Tensor, t: Tensor) -> Tensor:
        """The clean image that a noise prediction implies: (x_t - b_t eps) / a_t. No clamping."""
        a, b = self.coefficients(t, x_t)
        return (x_t - b * predicted_noise) / a


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the configuration of a scheduler is that of a rectified flow."""
    return "beta_start" not in config
