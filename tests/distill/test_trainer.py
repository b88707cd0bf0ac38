"""The loop against the method written out a second time, and its options."""

import copy

import pytest
import torch
from toys import ToyDenoiser, assert_same_bits, toy_objective, train, weights
from written_out import denoised, denoising, drawn, ell, scales

from pecker_fast.distill import PeckerTrainer
from pecker_fast.distill.networks import predict_noise
from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.runs.config import learning_rate_factor
from pecker_fast.runs.randomness import TRAINING, IterationRandom


def written_out_run(objective, mask, decay):
    """The method in two branches per phase, torch's AdamW on p[M], the average on whole tensors.

    Takes only the random numbers from the package. No dropout, so modes do not matter.
    """
    config, schedule, size = objective.config, objective.schedule, objective.config.batch_size
    phi, halves = objective.teacher, [slice(0, size), slice(size, None)]
    theta, psi = (copy.deepcopy(phi).requires_grad_(True) for _ in range(2))
    dense = mask.to_dense()
    adam = {"betas": (0.0, 0.999), "weight_decay": config.optimizer.weight_decay}
    salient = {name: p.detach()[dense[name]].clone() for name, p in theta.named_parameters()}
    theta_optimizer = torch.optim.AdamW(list(salient.values()), lr=config.generator.lr, **adam)
    psi_optimizer = torch.optim.AdamW(psi.parameters(), lr=config.pseudo_score.lr, **adam)
    average = weights(theta)

    for iteration in range(config.iterations):
        random = IterationRandom(config.seed, iteration, torch.device("cpu"), TRAINING)
        labels = objective.conditions.draw(size, random)
        told, theirs = labels.student, labels.teacher
        draws = objective.draw(random, 2 * size)
        psi_optimizer.zero_grad()
        scores = config.generator.scores
        lambdas = config.pseudo_score.lambda_remain, config.pseudo_score.lambda_forget
        for half, lam in zip(halves, lambdas, strict=True) if scores else ():
            x_g = drawn(schedule, theta, draws.noise[half], told[half]).detach()
            errors = denoising(schedule, psi, x_g, draws.e[half], draws.t[half], told[half])
            (lam * errors.mean()).backward()
        if scores:
            for p in psi.parameters():
                p.grad.clamp_(-1, 1)
            psi_optimizer.step()

        draws = objective.draw(random, 2 * size)
        theta.zero_grad()
        lambdas = config.generator.lambda_remain, config.generator.lambda_forget
        for half, lam in zip(halves, lambdas, strict=True) if scores else ():
            e, t = draws.e[half], draws.t[half]
            x_g = drawn(schedule, theta, draws.noise[half], told[half])
            p = denoised(schedule, phi, x_g, e, t, theirs[half])
            s = denoised(schedule, psi, x_g, e, t, told[half])
            (lam * ell(p, s, s, x_g, config.alpha).mean()).backward()
        if one := config.generator.one_step:
            at_start = drawn(schedule, phi, draws.noise, theirs)  # the run began at the teacher
            images = drawn(schedule, theta, draws.noise, told)
            error = ((images - at_start.detach()) ** 2).sum((1, 2, 3))
            terms = (lam * error[half].mean() for half, lam in zip(halves, lambdas, strict=True))
            (one * sum(terms)).backward()
        if every := config.generator.every_step:
            noised = objective.draw_every_step(random, 2 * size)
            a, b = scales(schedule, noised.t)
            x_t = a * drawn(schedule, theta, draws.noise, told).detach() + b * noised.e
            error = theta(x_t, noised.t, told) - phi(x_t, noised.t, theirs).detach()
            remain, forget = ((error[half] ** 2).sum((1, 2, 3)).mean() for half in halves)
            forget = config.generator.every_step_forget * forget
            (every * (lambdas[0] * remain + lambdas[1] * forget)).backward()
        for name, p in theta.named_parameters():
            salient[name].grad = p.grad[dense[name]].clamp(-1, 1)
        theta_optimizer.step()
        with torch.no_grad():
            for name, p in theta.named_parameters():
                p[dense[name]] = salient[name]
                average[name].lerp_(p, 1 - decay)
    return weights(theta), weights(psi), average


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"generator.every_step": 0.7},
        {"generator.one_step": 0.3, "generator.every_step": 0.7, "generator.every_step_forget": 4},
        {"generator.scores": False, "generator.one_step": 0.3, "generator.every_step": 0.7},
    ],
    ids=["as published", "every step", "all terms", "without scores"],
)
@pytest.mark.parametrize("kind", ["saliency", "full"])
def test_the_loop_is_the_method(kind, terms):
    objective = toy_objective(
        {
            "mask.kind": kind,
            **terms,
            "optimizer.weight_decay": 0.1,
            "pseudo_score.lambda_forget": 0.5,
        },
        dtype=torch.float64,
        dropout=0.0,
    )
    trainer, _ = train(objective)
    assert (trainer.mask.density == 1) == (kind == "full")
    theta, psi, average = written_out_run(objective, trainer.mask, 0.9)
    results = (trainer.generator, trainer.pseudo_score, trainer.ema_generator())
    for network, expected in zip(results, (theta, psi, average), strict=True):
        for name, param in network.named_parameters():
            # 6 steps of Adam at beta1 = 0 divide by |g|: rounding of a small gradient is magnified.
            torch.testing.assert_close(param, expected[name], rtol=1e-9, atol=1e-11)
    start = weights(objective.teacher)
    assert any(not torch.equal(theta[name], start[name]) for name in theta)


class Spy:
    """An adapter that notes every call: which network, its mode, and who wants gradients."""

    def __init__(self):
        self.calls = []

    def __call__(self, network, x_t, t, condition):
        wants = any(p.requires_grad for p in network.parameters())
        graph = torch.is_grad_enabled() and (wants or x_t.requires_grad)
        self.calls.append((network, network.training, wants, graph))
        return predict_noise(network, x_t, t, condition)

    def of_iteration(self, trainer, objective):
        names = {
            trainer.generator: "theta",
            trainer.pseudo_score: "psi",
            objective.teacher: "phi",
        }
        return [
            (names[network], "train" if training else "eval", wants, graph)
            for network, training, wants, graph in self.calls
        ]


def test_who_is_called_in_which_mode():
    spy = Spy()
    objective = toy_objective({"iterations": 1, "mask.kind": "random"}, predict=spy)
    trainer, _ = train(objective)
    assert spy.of_iteration(trainer, objective) == [
        ("theta", "eval", False, False),
        ("psi", "train", True, True),
        ("theta", "train", True, True),
        ("phi", "eval", False, True),
        ("psi", "eval", False, True),
    ]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_recomputing_changes_no_bit(dropout, micro_batch):
    """Forward passes run twice, and give the same; with dropout the generator's runs once."""
    runs = []
    for recompute in (False, True):
        spy = Spy()
        options = {"recompute": recompute, "micro_batch": micro_batch, "mask.kind": "random"}
        trainer, metrics = train(toy_objective(options, dropout=dropout, predict=spy))
        runs.append(
            [[m.losses for m in metrics], weights(trainer.generator), weights(trainer.pseudo_score)]
        )
    assert_same_bits(*runs)
    calls = [name for name, *_ in spy.of_iteration(trainer, trainer._objective)]
    again = ["theta", "phi", "psi", "psi", "phi", *([] if dropout else ["theta"])]
    assert calls[-len(again) :] == again


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
def test_micro_batches_change_rounding_only(micro_batch):
    exact = {"dtype": torch.float64, "dropout": 0.0}
    whole, _ = train(toy_objective({"iterations": 2}, **exact))
    parts, _ = train(toy_objective({"iterations": 2, "micro_batch": micro_batch}, **exact))
    for name, param in parts.generator.named_parameters():
        torch.testing.assert_close(
            param, whole.generator.get_parameter(name), rtol=1e-9, atol=1e-11
        )


def test_learning_rate_schedules():
    assert [learning_rate_factor("constant", i, 4) for i in range(4)] == [1, 1, 1, 1]
    assert [learning_rate_factor("linear", i, 4) for i in range(4)] == [1, 0.75, 0.5, 0.25]
    cosine = [learning_rate_factor("cosine", i, 4) for i in range(5)]
    assert cosine == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_of_every_step(schedule):
    seen = []

    class Recording(torch.optim.AdamW):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def make(network, mask, lr):
        first, *rest = network.parameters()
        return Recording([{"params": [first], "lr": 2 * lr}, {"params": rest}], lr=lr)

    overrides = {"lr_schedule": schedule, "iterations": 3, "pseudo_score.lr": 4e-3}
    train(toy_objective(overrides), make_optimizer=make)
    factors = [learning_rate_factor(schedule, i, 3) for i in range(3)]
    assert len(seen) == 6
    for i, factor in enumerate(factors):
        assert seen[2 * i] == pytest.approx([8e-3 * factor, 4e-3 * factor])  # pseudo-score first
        assert seen[2 * i + 1] == pytest.approx([2e-3 * factor, 1e-3 * factor])


def test_mistakes_are_refused():
    objective = toy_objective()
    with pytest.raises(PeckerError, match="must be three networks"):
        PeckerTrainer(objective, generator=objective.teacher)
    with pytest.raises(PeckerError, match="mask does not fit the model"):
        PeckerTrainer(objective, mask=SaliencyMask.full(ToyDenoiser(width=4)))
    with pytest.raises(PeckerError, match="needs a run directory"):
        PeckerTrainer(toy_objective({"logging.tensorboard": True}))
    refreshed = toy_objective({"mask.refresh_every": 2})
    with pytest.raises(PeckerError, match="a given mask cannot be refreshed"):
        PeckerTrainer(refreshed, mask=SaliencyMask.full(ToyDenoiser()))
    plain = PeckerTrainer(
        refreshed, make_optimizer=lambda n, m, lr: torch.optim.AdamW(n.parameters(), lr)
    )
    with pytest.raises(PeckerError, match="needs an optimizer with set_mask, got AdamW"):
        list(plain.run())
