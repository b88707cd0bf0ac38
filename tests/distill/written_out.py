"""The method written out a second time from its equations, for autograd to differentiate."""

import torch


def scales(schedule, t):
    """a and b of time steps, (N, 1, 1, 1) each."""
    abar = schedule.signal[t] ** 2
    return [scale.view(-1, 1, 1, 1) for scale in (abar.sqrt(), (1 - abar).sqrt())]


def drawn(schedule, predict, n, told):
    """What a generator draws of noise in one step; `predict` takes (x, t, told)."""
    t = torch.full((len(n),), schedule.t_init)
    a, b = scales(schedule, t)
    return (b * n - b * predict(b * n, t, told)) / a


def denoising(schedule, predict, x_g, e, t, told):
    """||e - eps||^2 per sample."""
    a, b = scales(schedule, t)
    return ((e - predict(a * x_g + b * e, t, told)) ** 2).sum((1, 2, 3))


def denoised(schedule, predict, x_g, e, t, told):
    """The clean images that a network makes of noisy ones."""
    a, b = scales(schedule, t)
    x_t = a * x_g + b * e
    return (x_t - b * predict(x_t, t, told)) / a


def ell(p, s, r, x_g, alpha):
    """The generator's loss per sample, from the second form in the method's notes."""
    omega = (p - x_g).detach().abs().mean((1, 2, 3)).clamp_min(1e-5)
    squared = ((p - s) ** 2).sum((1, 2, 3))
    return ((1 - alpha) * squared + ((p - s) * (r - x_g)).sum((1, 2, 3))) / omega
