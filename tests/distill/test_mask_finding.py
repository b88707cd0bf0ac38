"""The saliency of the distillation losses against gradients that autograd adds up by hand."""

import copy

import pytest
import torch
from toys import ToyDenoiser, toy_objective
from written_out import denoised, denoising, drawn, ell

from pecker_fast.distill import PeckerTrainer, find_mask
from pecker_fast.distill.network_set import NetworkSet
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.runs.randomness import SALIENCY, IterationRandom

EXACT = {"dtype": torch.float64, "dropout": 0.0}


def random_of(objective, iteration=0):
    return IterationRandom(objective.config.seed, iteration, torch.device("cpu"), SALIENCY)


def batch_gradients(objective, kind, random, which="forget", theta=None, psi=None):
    """The gradient of every batch's loss, written out from the equations; theta = psi = phi."""
    config, schedule, phi = objective.config, objective.schedule, objective.teacher
    size = config.saliency.batch_size
    half = slice(size, None) if which == "forget" else slice(size)
    theta = theta or copy.deepcopy(phi).requires_grad_(True)
    psi = psi or phi
    for _ in range(config.saliency.batches):
        labels = objective.conditions.draw(size, random)[half]
        draws = objective.draw(random, size)
        e, t, c = draws.e, draws.t, labels.student
        x_g = drawn(schedule, theta, draws.noise, c)
        if kind == "denoise":
            loss = denoising(schedule, theta, x_g.detach(), e, t, c).sum() / size
        else:
            p = denoised(schedule, phi, x_g, e, t, labels.teacher)
            s = denoised(schedule, psi, x_g, e, t, c)
            loss = config.generator.lambda_forget * ell(p, s, s, x_g, config.alpha).mean()
        parameters = dict(theta.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        yield dict(zip(parameters, gradients, strict=True))


def norm_of(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()


@pytest.mark.parametrize("clipped", ["none", "some", "all"])
@pytest.mark.parametrize("kind", ["forget", "denoise"])
def test_the_default_saliency_is_the_absolute_sum_of_clipped_gradients(kind, clipped):
    # Small batches differ much in norm, so that clipping changes the ranking.
    overrides = {"saliency.kind": kind, "saliency.batches": 5, "saliency.batch_size": 2}
    overrides["generator.lambda_forget"] = 0.1
    objective = toy_objective(overrides, **EXACT)
    batches = list(batch_gradients(objective, kind, random_of(objective, 4)))
    norms = [norm_of(gradients).item() for gradients in batches]
    clip = {"none": None, "some": sum(norms) / 5, "all": min(norms) / 2}[clipped]
    total = {}
    for gradients, norm in zip(batches, norms, strict=True):
        scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        for name, gradient in gradients.items():
            total[name] = total.get(name, 0) + scale * gradient
    expected = SaliencyMask.from_scores({name: value.abs() for name, value in total.items()}, 0.3)

    objective = toy_objective({**overrides, "saliency.clip_grad_norm": clip}, **EXACT)
    assert find_mask(objective, iteration=4) == expected
    assert find_mask(objective, iteration=5) != expected


@pytest.mark.parametrize("kind", ["fisher_ratio", "retain_aware"])
def test_contrasts_weigh_forget_against_remain(kind):
    overrides = {"saliency.kind": kind, "saliency.clip_grad_norm": None, "saliency.batches": 3}
    objective = toy_objective(overrides, **EXACT)
    torch.manual_seed(1)
    theta, psi = (ToyDenoiser(dropout=0.0).double().eval() for _ in range(2))
    loss = "denoise" if kind == "fisher_ratio" else "forget"
    random = random_of(objective)  # the remain batches go on with its numbers
    forget, remain = (
        list(batch_gradients(objective, loss, random, which, theta, psi))
        for which in ("forget", "remain")
    )
    square = {name: sum(grads[name] ** 2 for grads in remain) for name in remain[0]}
    if kind == "fisher_ratio":
        tiny = torch.finfo(torch.float64).tiny
        scores = {n: sum(g[n] ** 2 for g in forget) / (square[n] + tiny) for n in square}
    else:
        rms = {name: (value / len(remain)).sqrt() for name, value in square.items()}
        floor = 1e-3 * torch.cat([value.flatten() for value in rms.values()]).mean()
        scores = {n: sum(g[n] for g in forget).abs() / (rms[n] + floor) for n in rms}
    found = find_mask(objective, NetworkSet(objective.teacher, theta, psi))
    assert found == SaliencyMask.from_scores(scores, 0.3)
    # The forget class's own row of the class table is never used by the remain batches.
    assert found.to_dense()["classes.weight"][0].all()


def test_retain_aware_needs_a_first_stage():
    objective = toy_objective({"saliency.kind": "retain_aware"})
    with pytest.raises(PeckerError, match="first stage"):
        find_mask(objective)
    with pytest.raises(PeckerError, match="first stage"):
        PeckerTrainer(objective, generator=ToyDenoiser())


def test_nothing_is_changed_by_looking():
    objective = toy_objective()
    generator, pseudo_score = ToyDenoiser(), ToyDenoiser()
    before = [copy.deepcopy(n.state_dict()) for n in (objective.teacher, generator, pseudo_score)]
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    find_mask(objective, NetworkSet(objective.teacher, generator, pseudo_score))
    assert torch.equal(torch.rand(2), expected)
    for network, state in zip((objective.teacher, generator, pseudo_score), before, strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(value, state[name])
        assert all(p.grad is None for p in network.parameters())
    assert all(p.requires_grad for p in generator.parameters())
    assert all(p.requires_grad for p in pseudo_score.parameters())


def test_random_and_full_do_not_look_at_the_losses():
    def never(network, x_t, t, condition):
        raise AssertionError("a network was called")

    mask = find_mask(toy_objective({"mask.kind": "random"}, predict=never))
    assert mask.nnz == round(0.3 * mask.numel)
    assert mask == find_mask(toy_objective({"mask.kind": "random"}, predict=never))
    assert mask != find_mask(toy_objective({"mask.kind": "random", "seed": 1}, predict=never))
    assert find_mask(toy_objective({"mask.kind": "full"}, predict=never)).density == 1


def test_a_saliency_that_vanishes_is_refused():
    objective = toy_objective()
    with torch.no_grad():  # as diffusers starts a network: it predicts no noise, whatever the class
        objective.teacher.conv_out.weight.zero_()
        objective.teacher.conv_out.bias.zero_()
    with pytest.raises(PeckerError, match="every saliency is 0: the gradient of forget"):
        find_mask(objective)
    with torch.no_grad():
        objective.teacher.conv_out.bias.fill_(torch.nan)
    with pytest.raises(PeckerError, match=r"losses\[0\] is nan"):
        find_mask(objective)
