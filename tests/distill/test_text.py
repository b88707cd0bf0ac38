"""Guidance against the method written out, and everything else a run with text can be asked."""

import copy

import pytest
import torch
from text_toys import drawn_at, encode, text_objective
from written_out import denoised, denoising, drawn, ell

from pecker_fast.distill import PeckerTrainer
from pecker_fast.distill.networks import diffusers_predictor
from pecker_fast.errors import PeckerError
from pecker_fast.models.architectures.stable_diffusion import StableDiffusion
from pecker_fast.runs.live_memory import LiveMemory
from pecker_fast.runs.randomness import TRAINING, IterationRandom

CPU = torch.device("cpu")


def written_out(objective, networks, draws, labels, guidance):
    """L_psi and ell per sample, for autograd; `guidance`: place -> scale, negative of each term.

    A sample whose prompt was dropped is drawn and denoised under "", away from "" (SFD, SiD-LSG).
    """
    schedule, alpha = objective.schedule, objective.config.alpha
    phi, theta, psi = networks
    n, e, t = draws.noise, draws.e, draws.t
    size = len(n) // 2
    dropped = (labels.of_samples == 0).flatten(1).all(1)[:, None, None]  # encode("") is 0

    def eps(network, place=None):
        def call(x, t, condition):
            return network(x, t, encoder_hidden_states=condition.double()).sample

        def guided(x, t, condition):
            scale, negatives = guidance[place]
            away = encode(negatives).repeat_interleave(size, 0)
            without = call(x, t, away * ~dropped if place == "kappa1" else away)
            return without + scale * (call(x, t, condition) - without)

        return call if place is None else guided

    fixed, x_g = (drawn(schedule, eps(theta), n, c) for c in (labels.of_samples, labels.student))
    l_psi = denoising(schedule, eps(psi, "kappa1"), fixed.detach(), e, t, labels.of_samples)
    p, s, r = (
        denoised(schedule, eps(network, place), x_g, e, t, told)
        for network, place, told in (
            (phi, "kappa4", labels.teacher[:, 0]),
            (psi, "kappa2", labels.student),
            (psi, "kappa3", labels.student),
        )
    )
    return l_psi, ell(p, s, r, x_g, alpha)


GUIDANCE = {
    "published": ({}, {}),
    "none": (dict.fromkeys(("kappa1", "kappa2", "kappa3", "kappa4"), 1.0), {}),
    "four scales": ({"kappa1": 1.5, "kappa2": 2.0, "kappa3": 3.0, "kappa4": 4.0}, {}),
    "negatives": (
        {},
        {
            "forget": {"kappa1": "bad", "kappa2": "worse", "kappa3": "ugly", "kappa4": "blue"},
            "remain": {"kappa1": "dull", "kappa3": "worse"},
        },
    ),
    "negative teacher": ({"kappa2": 2.0, "kappa3": 2.0}, {"forget": {"kappa4": "a cat"}}),
}


# At alpha = 1 a term of the loss is gone; where it is there, guidance enters it.
@pytest.mark.parametrize(
    ("guided", "alpha"),
    [("published", 1.0), ("none", 0.5), *((guided, 1.2) for guided in GUIDANCE)],
)
def test_losses_and_gradients_are_the_methods(guided, alpha):
    scales, negative = GUIDANCE[guided]
    objective = text_objective(
        {"alpha": alpha},
        {"guidance": scales, "negative": negative, "dropout": 0.4},
        dtype=torch.float64,
    )
    places = ("kappa1", "kappa2", "kappa3", "kappa4")
    away = [[negative.get(term, {}).get(p, "") for term in ("remain", "forget")] for p in places]
    guidance = {p: (scales.get(p, 4.5), a) for p, a in zip(places, away, strict=True)}
    trainer = PeckerTrainer(objective)
    with torch.no_grad():  # three different networks
        for network in (trainer.generator, trainer.pseudo_score):
            for param in network.parameters():
                param.add_(0.05 * torch.randn_like(param))
    random = drawn_at(0)
    labels = objective.conditions.draw(3, random)
    draws = objective.draw(random, 6)
    assert 0 < (labels.of_samples == 0).flatten(1).all(1).sum() < 6
    theta, psi = (n.eval().requires_grad_(True) for n in (trainer.generator, trainer.pseudo_score))
    networks = (objective.teacher, theta, psi)
    weight = torch.rand(6, dtype=torch.float64)
    l_psi, expected_ell = written_out(objective, networks, draws, labels, guidance)
    expected_psi = torch.autograd.grad((weight * l_psi).sum(), list(psi.parameters()))
    expected = torch.autograd.grad((weight * expected_ell).sum(), list(theta.parameters()))
    psi.requires_grad_(False)

    x_g = objective.sample(theta, draws.noise, labels.student)
    found, gradient = objective.score(trainer._networks, x_g, draws, labels, weight)
    torch.testing.assert_close(found, expected_ell, rtol=1e-10, atol=1e-10)
    close = {"rtol": 1e-8, "atol": 1e-8}
    for a, b in zip(
        torch.autograd.grad(x_g, list(theta.parameters()), gradient), expected, strict=True
    ):
        torch.testing.assert_close(a, b, **close)
    psi.requires_grad_(True)
    images = objective.sample(theta, draws.noise, labels.of_samples)
    loss = objective.denoising(psi, images.detach(), draws, labels)
    torch.testing.assert_close(loss, l_psi, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad((weight * loss).sum(), list(psi.parameters()))
    for a, b in zip(ours, expected_psi, strict=True):
        torch.testing.assert_close(a, b, **close)


def test_equal_guidance_costs_no_third_pass():
    calls = []
    for kappa3 in (4.5, 3.0):
        objective = text_objective(text={"guidance": {"kappa3": kappa3}})
        trainer = PeckerTrainer(objective)
        count = [0]
        trainer.pseudo_score.register_forward_hook(lambda *_, c=count: c.__setitem__(0, c[0] + 1))
        next(trainer.run())
        calls.append(count[0])
    assert calls == [2, 3]  # training, difference; and residual


def test_a_velocity_model_is_a_noise_model():
    """v = a e - b x_0: the predicted noise, and the published loss with its weight snr/(snr+1)."""
    objective = text_objective(dtype=torch.float64)
    schedule, network = objective.schedule, objective.teacher
    x_0, e = torch.randn(2, 5, 2, 8, 8, dtype=torch.float64)
    t = torch.tensor([20, 100, 500, 900, 979])
    condition = encode(["a cat"]).expand(5, -1, -1)
    a, b = schedule.coefficients(t, x_0)
    x_t = schedule.add_noise(x_0, e, t)
    v = network(x_t, t, encoder_hidden_states=condition.double()).sample
    found = diffusers_predictor(schedule, StableDiffusion().call, "v_prediction")(
        network, x_t, t, condition
    )
    torch.testing.assert_close(found, a * v + b * x_t)
    published = (a**2 * ((a * e - b * x_0) - v) ** 2).sum((1, 2, 3))
    torch.testing.assert_close(((e - found) ** 2).sum((1, 2, 3)), published)
    with pytest.raises(PeckerError, match="prediction_type 'sample'; the distillation knows"):
        diffusers_predictor(schedule, StableDiffusion().call, "sample")


GUIDED = {"guidance": {"kappa1": 2.0, "kappa2": 3.0, "kappa3": 1.5, "kappa4": 4.5}}


def test_recompute_takes_the_halves_of_guidance_one_after_the_other():
    """In float64: one pass of 2N samples and two of N differ in the order of sums alone."""
    runs = []
    for recompute in (False, True):
        settings = {"recompute": recompute, "mask.kind": "random", "optimizer.eps": 1.0}
        trainer = PeckerTrainer(text_objective(settings, GUIDED, dtype=torch.float64))
        losses = [dict(metrics.losses) for metrics in trainer.run()]
        runs.append((losses, trainer.generator.state_dict(), trainer.pseudo_score.state_dict()))
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-12)


def peak(phase, **settings):
    settings = {"mask.kind": "random", "batch_size": 16, **settings}
    trainer = PeckerTrainer(text_objective(settings, GUIDED))
    inputs = trainer.draw(IterationRandom(0, 0, torch.device("cpu"), TRAINING))
    with LiveMemory() as memory:
        getattr(trainer._step, phase)(inputs)
    return memory.peak_bytes


def test_halves_one_after_the_other_take_the_memory_of_one():
    """Where the pseudo-score network learns, which `recompute` leaves alone but for guidance."""
    phase = "_pseudo_score_phase"
    assert peak(phase, recompute=True) < 0.7 * peak(phase)


def test_blocks_and_passes_computed_again_take_less_than_either():
    phase = "_generator_phase"
    both = peak(phase, recompute=True, recompute_blocks=True)
    passes, blocks = peak(phase, recompute=True), peak(phase, recompute_blocks=True)
    assert both < min(passes, blocks) and passes < 0.6 * peak(phase)


# ---- everything else works with text too


def test_every_time_step_is_redirected_under_prompts():
    """Generator and teacher are both told "" where the prompt is dropped."""
    objective = text_objective(
        {"generator.every_step": 2.0, "mask.kind": "full"}, {"dropout": 0.4}, dtype=torch.float64
    )
    trainer = PeckerTrainer(objective)
    inputs = trainer.draw(drawn_at(1))
    labels, noised = inputs.labels, inputs.every_step
    dropped = (labels.of_samples == 0).flatten(1).all(1)
    assert 0 < dropped[3:].sum() < 3
    noise, teacher = inputs.generator.noise, copy.deepcopy(objective.teacher)
    x_g = objective.sample(teacher, noise, labels.student)
    x_t = objective.schedule.add_noise(x_g, noised.e, noised.t)
    predict = objective.predictors.generator
    told = labels.student.masked_fill(dropped[:, None, None], 0)
    override = labels.teacher[:, 0].masked_fill(dropped[:, None, None], 0)
    with torch.no_grad():
        found, wanted = (predict(teacher, x_t, noised.t, c.double()) for c in (told, override))
    expected = (found - wanted).square().flatten(1).sum(1)
    assert expected[:3].abs().max() == 0 == expected[3:][dropped[3:]].abs().max()
    metrics = dict(zip(trainer.terms, trainer.advance(inputs), strict=True))
    every = [float(value) for name, value in metrics.items() if "every_step" in name]
    assert every == pytest.approx([0.0, float(expected[3:].mean())], abs=1e-12)
