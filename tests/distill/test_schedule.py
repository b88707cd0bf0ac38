import math

import pytest
import torch
from diffusers import DDPMScheduler

from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError


def sigma(schedule, t):
    abar = schedule.alphas_cumprod[t].item()
    return math.sqrt((1 - abar) / abar)


def test_constants_of_the_linear_schedule():
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler())
    assert (schedule.t_init, schedule.t_min, schedule.t_max) == (440, 38, 712)
    assert schedule.alphas_cumprod[440].sqrt().item() == pytest.approx(0.3711, abs=5e-5)
    assert sigma(schedule, 440) == pytest.approx(2.502, abs=5e-4)
    assert sigma(schedule, 38) == pytest.approx(0.137, abs=5e-4)
    assert sigma(schedule, 711) == pytest.approx(13.01, abs=5e-3)


def test_constants_of_the_scaled_linear_schedule():
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule = NoiseSchedule.from_scheduler(scheduler, t_init=625, t_min=20, t_max=980)
    assert sigma(schedule, 625) == pytest.approx(2.502, abs=5e-4)
    assert sigma(schedule, 20) == pytest.approx(0.138, abs=5e-4)
    assert sigma(schedule, 979) == pytest.approx(12.97, abs=5e-3)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "trained"])
def test_agrees_with_the_scheduler_it_came_from(kind):
    if kind == "trained":
        scheduler = DDPMScheduler(8, trained_betas=[0.01 * (i + 1) for i in range(8)])
    else:
        scheduler = DDPMScheduler(beta_schedule=kind)
    steps = scheduler.config.num_train_timesteps
    schedule = NoiseSchedule.from_scheduler(scheduler, t_init=steps // 2, t_min=0, t_max=steps)
    assert schedule.num_timesteps == steps
    # 1e-4 relative: the scheduler multiplies 1,000 factors in float32, we do in float64.
    torch.testing.assert_close(
        schedule.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=0
    )
    x, noise = torch.randn(2, 3, 1, 4, 4)
    t = torch.tensor([0, steps // 2, steps - 1])
    torch.testing.assert_close(
        schedule.add_noise(x, noise, t), scheduler.add_noise(x, noise, t), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoised_inverts_add_noise(dtype):
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler())
    x, noise = torch.randn(2, 5, 2, 3, 3, dtype=dtype)
    t = torch.tensor([0, 38, 440, 711, 999])
    x_t = schedule.add_noise(x, noise, t)
    assert x_t.dtype == dtype
    a, b = schedule.coefficients(t, x)
    assert a.shape == (5, 1, 1, 1)
    # The float32 coefficients are the float64 ones rounded once.
    torch.testing.assert_close(
        a.flatten(), schedule.alphas_cumprod[t].sqrt().to(dtype), rtol=0, atol=0
    )
    torch.testing.assert_close(
        b.flatten(), (1 - schedule.alphas_cumprod[t]).sqrt().to(dtype), rtol=0, atol=0
    )
    # The recovered image loses what dividing by a = 0.006 at t = 999 magnifies.
    unit = {torch.float32: 1e-7, torch.float64: 1e-15}[dtype]
    error = (schedule.denoised(x_t, noise, t) - x).abs() * a
    assert error.max() < 10 * unit


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"t_init": 1000}, "t_init must be in 0 .. 999, got 1000"),
        ({"t_init": -1}, "t_init"),
        ({"t_min": 712}, "t_min 712 and t_max 712"),
        ({"t_max": 1001}, "t_max 1001"),
        ({"t_min": -1}, "t_min -1"),
    ],
)
def test_time_constants_outside_the_schedule_are_refused(constants, message):
    with pytest.raises(PeckerError, match=message):
        NoiseSchedule.from_scheduler(DDPMScheduler(), **constants)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_type": "v_prediction"}, "v_prediction"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_schedulers_that_the_method_cannot_use_are_refused(options, message):
    with pytest.raises(PeckerError, match=message):
        NoiseSchedule.from_scheduler(DDPMScheduler(**options))


@pytest.mark.parametrize(
    "abar",
    [
        torch.tensor([0.5, 0.6], dtype=torch.float64),
        torch.tensor([1.0, 0.6], dtype=torch.float64),
        torch.tensor([0.9, 0.0], dtype=torch.float64),
        torch.tensor([0.9, float("nan")], dtype=torch.float64),
        torch.tensor([0.9, 0.8], dtype=torch.float32),
        torch.tensor([], dtype=torch.float64),
    ],
)
def test_what_is_not_a_schedule_is_refused(abar):
    with pytest.raises(PeckerError, match="alphas_cumprod"):
        NoiseSchedule(abar, t_init=0, t_min=0, t_max=1)
