"""Redirecting: its images against diffusers, its loop written out again, what it does."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler
from small import small_model, small_redirection, small_redirection_of_prompts, train
from toys import weights

from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError
from pecker_fast.masks.scores import saliency_scores
from pecker_fast.methods.redirect import drawn_states
from pecker_fast.runs.randomness import SALIENCY, TRAINING, IterationRandom

CPU = torch.device("cpu")
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


@torch.no_grad()
def test_images_are_drawn_as_diffusers_ddim_does():
    network = small_model(torch.float64, dropout=0.0).network
    noise, labels = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    ddim = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
    ddim.alphas_cumprod = ABAR  # in float64
    ddim.set_timesteps(10)
    offset, schedule = torch.zeros_like(labels), NoiseSchedule.from_alphas_cumprod(ABAR)
    states = drawn_states(noise, offset, schedule, 10, lambda x, t: network(x, t, labels))
    expected = noise
    for now, (x, t, predicted) in zip(ddim.timesteps, states, strict=True):
        assert t.tolist() == [int(now)] * 3
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
        expected = ddim.step(predicted, now, expected).prev_sample


def written_out_run(objective, mask, abar=ABAR):
    """One graph for all steps of an iteration; torch's Adam. No dropout."""
    config = objective.config

    def ask(network, x, t, told):
        found = network(x, t, told.double() if told.is_floating_point() else told)
        return found if isinstance(found, torch.Tensor) else found.sample

    original, network = objective.original, copy.deepcopy(objective.original).requires_grad_(True)
    adam = torch.optim.Adam(network.parameters(), lr=config.optimizer.lr, betas=(0.9, 0.999))
    dense, lambdas = mask.to_dense(), (config.lambda_remain, config.lambda_forget)
    for iteration in range(config.iterations):
        batches = objective.batches(IterationRandom(config.seed, iteration, CPU, TRAINING))
        loss = 0.0
        for weight, batch in zip(lambdas, batches, strict=True):
            x = batch.noise
            for step in (3, 2, 1, 0):
                t = 250 * step + batch.offset
                predicted = ask(network, x, t, batch.told)
                error = predicted - ask(original, x, t, batch.original)
                losses = error.square().sum(dim=(1, 2, 3))
                if batch.weight is not None:
                    losses = losses * batch.weight
                loss = loss + weight / 4 * losses.mean()
                a, next_a = (abar[s].view(-1, 1, 1, 1) for s in (t, t - 250))
                clean = (x - (1 - a).sqrt() * predicted) / a.sqrt()
                x = (next_a.sqrt() * clean + (1 - next_a).sqrt() * predicted).detach()
        adam.zero_grad()
        loss.backward()
        for name, param in network.named_parameters():
            param.grad *= dense[name]
        adam.step()
    return weights(network)


def test_the_loop_is_the_method():
    overrides = {"optimizer.clip_grad_norm": None}
    objective = small_redirection(overrides, dtype=torch.float64, dropout=0.0)
    trainer, metrics = train(objective)
    expected = written_out_run(objective, trainer.mask)
    for name, param in trainer.erased_network().named_parameters():
        torch.testing.assert_close(param, expected[name], rtol=1e-9, atol=1e-12)
    check = trainer.verify_frozen()
    assert check.frozen_changed == 0 < min(check.frozen, check.salient_changed)
    assert list(metrics[-1].losses) == ["remain", "forget"]


@pytest.mark.slow
def test_the_loop_is_the_method_under_prompts(tmp_path):
    """One of the concepts has half the weight."""
    objective = small_redirection_of_prompts(
        tmp_path / "tiny", {"optimizer.clip_grad_norm": None, "optimizer.lr": 1e-2}
    )
    assert (objective.pairs, objective.dtype) == ((), torch.float64)
    trainer, _ = train(objective)
    expected = written_out_run(objective, trainer.mask, objective.schedule.signal.square())
    for name, param in trainer.erased_network().named_parameters():
        torch.testing.assert_close(param, expected[name], rtol=1e-8, atol=1e-10)
    assert trainer.verify_frozen().frozen_changed == 0


def test_who_is_told_which_prompt(tmp_path):
    objective = small_redirection_of_prompts(tmp_path / "tiny", {"batch_size": 400})
    remain, forget = objective.batches(IterationRandom(0, 0, CPU, TRAINING))
    prompts = objective.conditions.prompts
    table = objective.conditions.embeddings(prompts, CPU)

    def named(told):
        rows = (told[:, None] == table[None]).flatten(2).all(2).float().argmax(1)
        return [prompts[row] for row in rows.tolist()]

    pairs = {("a cat", "a dog"), ("one cat", "one dog"), ("a cow", "a pig"), ("", "")}
    both = list(zip(named(forget.told), named(forget.original), strict=True))
    assert set(both) == pairs and set(named(remain.told)) == {"a red car", "a blue car", ""}
    assert torch.equal(remain.told, remain.original) and (remain.weight == 1).all()
    assert {pair for pair, w in zip(both, forget.weight, strict=True) if w == 0.5} <= {
        ("a cow", "a pig"), ("", "")
    }  # fmt: skip
    assert 50 < named(remain.told).count("") < 150  # 100 +- 5 standard deviations of 8.7


def test_who_is_told_what():
    objective = small_redirection({"batch_size": 500, "label_dropout": 0.25})
    remain, forget = objective.batches(IterationRandom(0, 0, CPU, TRAINING))
    assert (forget.told == 2).all() and (forget.original == 1).all()
    assert torch.equal(remain.told, remain.original)
    assert set(remain.told.tolist()) == {0, 1, 3, 4}
    none = int((remain.told == 4).sum())
    assert 80 < none < 170  # 125 +- 5 standard deviations
    for batch in (remain, forget):
        assert batch.offset.min() < 5 and 245 <= batch.offset.max() < 250
    unguided = small_redirection({"batch_size": 500, "label_dropout": 0.25}, null_label=None)
    remain, _ = unguided.batches(IterationRandom(0, 0, CPU, TRAINING))
    assert set(remain.told.tolist()) == {0, 1, 3}


def test_the_saliency_of_what_is_kept_is_the_curvature():
    """Its squares average to the diagonal of J^T J, which autograd gives row by row."""
    objective = small_redirection({"steps": 1, "saliency.batch_size": 1}, dropout=0.0)
    network = copy.deepcopy(objective.original).requires_grad_(True)
    weight = network.classes.weight
    rounds = 600

    def gradients():
        for seed in range(rounds):
            # The same image each time: only the noise that multiplies differs.
            _, _, losses = objective.saliency(network, Fixed(seed))
            yield next(losses)

    class Fixed(IterationRandom):
        def __init__(self, seed):
            super().__init__(0, 0, CPU, SALIENCY)
            self.drawn, self.other = False, torch.Generator().manual_seed(seed)

        def normal(self, shape, dtype):
            if self.drawn:
                return torch.randn(shape, generator=self.other, dtype=dtype)
            self.drawn = True
            return super().normal(shape, dtype)

    scores = saliency_scores(network, gradients(), reduction="sum_of_squares")
    drawing, _ = objective._drawings(1, Fixed(0))
    predicted = network(drawing.noise, drawing.offset, drawing.told)
    rows = [torch.autograd.grad(out, weight, retain_graph=True)[0] for out in predicted.flatten()]
    exact = torch.stack(rows).square().sum(0)
    # 600 squares of a normal number: 6 % standard error.
    torch.testing.assert_close(scores["classes.weight"] / rounds, exact, rtol=0.3, atol=1e-6)


def test_what_the_mask_depends_on():
    def found(overrides):
        objective = small_redirection(overrides)
        return objective.find_mask(copy.deepcopy(objective.original).requires_grad_(True))

    usual = found({})
    assert usual == found({})
    changes = (
        {"forget": 3}, {"override": 0}, {"seed": 1}, {"saliency.batches": 2}, {"steps": 5},
    )  # fmt: skip
    for change in changes:
        assert found(change) != usual, change


@pytest.mark.parametrize(
    ("changes", "named"), [({"override": None}, "--override"), ({"steps": 1001}, "steps 1001"),
                           ({"override": 2}, "same class"), ({"forget": 7}, "unknown class 7")]
)  # fmt: skip
def test_what_is_refused(changes, named):
    with pytest.raises(PeckerError, match=named):
        small_redirection(changes)
