import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from pecker_fast.distill.networks import diffusers_predictor
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError


def sigma(schedule, t):
    return (schedule.noise[t] / schedule.signal[t]).item()


@pytest.mark.parametrize(
    ("options", "constants", "sigmas"),
    [
        ({}, (440, 38, 712), (2.502, 0.137, 13.01)),
        (
            {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
            (625, 20, 980),
            (2.502, 0.138, 12.97),
        ),
    ],
)
def test_the_published_constants(options, constants, sigmas):
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(**options))
    assert (schedule.t_init, schedule.t_min, schedule.t_max) == constants
    found = [sigma(schedule, t) for t in (schedule.t_init, schedule.t_min, schedule.t_max - 1)]
    assert found == pytest.approx(sigmas, rel=4e-3)


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
        (schedule.signal**2).float(), scheduler.alphas_cumprod, rtol=1e-4, atol=0
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
    assert torch.equal(a.flatten(), schedule.signal[t].to(dtype))
    assert torch.equal(b.flatten(), schedule.noise[t].to(dtype))
    # The recovered image loses what dividing by a = 0.006 at t = 999 magnifies.
    unit = {torch.float32: 1e-7, torch.float64: 1e-15}[dtype]
    error = (schedule.denoised(x_t, noise, t) - x).abs() * a
    assert error.max() < 10 * unit


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"t_init": 1000}, "t_init must be in 0 .. 999, got 1000"),
        ({"t_min": 712}, "t_min 712 and t_max 712"),
        ({"t_max": 1001}, "t_max 1001"),
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
        torch.tensor([0.9, 0.0, 0.0], dtype=torch.float64),
        torch.tensor([0.9, -0.1], dtype=torch.float64),
        torch.tensor([0.9, 0.8], dtype=torch.float32),
        torch.tensor([], dtype=torch.float64),
    ],
)
def test_what_is_not_a_schedule_is_refused(abar):
    with pytest.raises(PeckerError, match=r"share of the image|float64"):
        NoiseSchedule(abar, 1 - abar, t_init=0, t_min=0, t_max=1)


def test_no_signal_at_the_end():
    """Lin et al.: the betas of diffusers' own rescaling, which leaves the last step pure noise."""
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    constants = {"t_init": 440, "t_min": 38}
    schedule = NoiseSchedule.from_scheduler_config(scheduler.config, t_max=999, **constants)
    # Close to 0 what is left in float32 is a difference of numbers near 0.08.
    torch.testing.assert_close(
        (schedule.signal**2).float(), scheduler.alphas_cumprod, rtol=2e-3, atol=1e-7
    )
    assert schedule.signal[-1] == 0 and schedule.usable == 999
    with pytest.raises(PeckerError, match="t_max 1000"):
        NoiseSchedule.from_scheduler_config(scheduler.config, t_max=1000, **constants)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_has_the_times_of_its_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = NoiseSchedule.from_scheduler_config(
        scheduler.config, t_init=None, t_min=20, t_max=980
    )
    torch.testing.assert_close(schedule.noise.float(), scheduler.sigmas.flip(0), rtol=1e-6, atol=0)
    t = torch.tensor([20, 500, 979])
    x = torch.zeros(3, 1, 2, 2)
    told = scheduler.timesteps.flip(0)[t]
    torch.testing.assert_close(schedule.times(t, x), told, rtol=1e-6, atol=0)
    assert sigma(schedule, schedule.t_init) == pytest.approx(2.5, rel=0.01)


def test_a_flow_is_read_as_noise():
    """x_t = (1 - s) x + s e and v = e - x: noise, image and loss, each from its definition."""
    schedule = NoiseSchedule.rectified_flow(shift=3.0, t_init=None, t_min=20, t_max=980)
    x, e, guess = torch.randn(3, 5, 2, 3, 3, dtype=torch.float64)
    t = torch.tensor([0, 20, 454, 979, 998])
    s = schedule.noise[t].view(-1, 1, 1, 1)
    x_t = schedule.add_noise(x, e, t)
    torch.testing.assert_close(x_t, (1 - s) * x + s * e)
    seen = []

    def call(network, x_t, time, condition):
        seen.append(time)
        return guess

    predicted = diffusers_predictor(schedule, call, "flow_prediction")(nn.Linear(1, 1), x_t, t, t)
    torch.testing.assert_close(seen[0], 1000 * s.flatten())
    torch.testing.assert_close(schedule.denoised(x_t, predicted, t), x_t - s * guess)
    loss = schedule.weighted((e - predicted).square().flatten(1).sum(1), t)
    torch.testing.assert_close(loss, ((e - x) - guess).square().flatten(1).sum(1))
