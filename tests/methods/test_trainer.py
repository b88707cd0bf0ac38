"""The loop against the methods written out a second time; frozen bits."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from small import small_images, small_model, small_objective, train
from torch.nn import functional as F
from toys import ToyDenoiser, assert_same_bits, weights

from pecker_fast.errors import PeckerError
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.randomness import TRAINING, IterationRandom

METHODS = ("random_label", "negative_gradient", "fine_tune", "esd")
CPU = torch.device("cpu")


def written_out_run(objective, mask, clip):
    """SalUn's loop: whole gradient, norm clipped, masked, torch's Adam. No dropout."""
    config = objective.config
    original, network = objective.original, copy.deepcopy(objective.original).requires_grad_(True)
    adam = torch.optim.Adam(network.parameters(), lr=config.optimizer.lr, betas=(0.9, 0.999))
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    dense = mask.to_dense()
    for iteration in range(config.iterations):
        random = IterationRandom(config.seed, iteration, CPU, TRAINING)
        remain = objective.draw("remain", random) if config.lambda_remain else None
        loss = 0.0
        if remain is not None:
            a = abar[remain.t].view(-1, 1, 1, 1)
            x_t = a.sqrt() * remain.images + (1 - a).sqrt() * remain.noise
            error = remain.noise - network(x_t, remain.t, remain.labels)
            loss = config.lambda_remain * error.square().sum(dim=(1, 2, 3)).mean()
        if config.method != "fine_tune":
            forget = objective.draw("forget", random)
            a = abar[forget.t].view(-1, 1, 1, 1)
            x_t = a.sqrt() * forget.images + (1 - a).sqrt() * forget.noise
            predicted = network(x_t, forget.t, forget.labels)
            nothing = torch.full_like(forget.labels, 4)
            if config.method == "random_label":
                target = network(x_t, forget.t, forget.imitated).detach()
                loss = loss + F.mse_loss(predicted, target)
            elif config.method == "negative_gradient":
                loss = loss - (forget.noise - predicted).square().sum(dim=(1, 2, 3)).mean()
            else:
                e_0 = original(x_t, forget.t, nothing)
                target = e_0 - config.eta * (original(x_t, forget.t, forget.labels) - e_0)
                loss = loss + F.mse_loss(predicted, target)
        adam.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        for name, param in network.named_parameters():
            param.grad *= dense[name]
        adam.step()
    return weights(network)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("mask", "clip"),
    [
        ({"mask.kind": "saliency"}, 0.05),
        ({"mask.kind": "full"}, 0.05),
        ({"mask.kind": "random"}, None),
        # Whole rows are frozen, whose gradients cost nothing but for the norm, which is over all.
        ({"mask.kind": "random", "mask.granularity": "out_channel"}, 0.05),
    ],
)
def test_the_loop_is_the_method(method, mask, clip):
    overrides = {**mask, "optimizer.clip_grad_norm": clip, "label_dropout": 0.3}
    if method == "esd":
        overrides["lambda_remain"] = 0.0
    objective = small_objective(overrides, method, dtype=torch.float64, dropout=0.0)
    trainer, _ = train(objective)
    expected = written_out_run(objective, trainer.mask, clip)
    for name, param in trainer.erased_network().named_parameters():
        torch.testing.assert_close(param, expected[name], rtol=1e-9, atol=1e-12)
    check = trainer.verify_frozen()
    assert check.frozen_changed == 0 < check.salient_changed
    assert (check.frozen == 0) == (mask["mask.kind"] == "full")


def test_a_run_leaves_the_model_and_the_random_state_alone():
    model = small_model()
    before = weights(model.network)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(small_objective(model=model))
    assert torch.equal(torch.rand(3), expected)
    assert_same_bits(weights(model.network), before)


class Modes(ToyDenoiser):
    """Notes every call: train mode, and whether a graph is built."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def forward(self, x, t, condition):
        wants = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        self.calls.append((self.training, wants))
        return super().forward(x, t, condition)


def test_who_is_called_in_which_mode():
    model = small_model()
    model.network = Modes(num_classes=5)
    one = {"iterations": 1, "mask.kind": "random", "logging.every": 1}
    trainer, _ = train(small_objective(one, model=model))
    # Remain; the target without a graph, in train mode as published; forget.
    assert trainer.network.calls == [(True, True), (True, False), (True, True)]
    trainer, _ = train(small_objective({**one, "lambda_remain": 0.0}, "esd", model=model))
    assert trainer.network.calls == [(True, True)]
    assert model.network.calls == [(False, False)] * 2  # the original, with and without class
    assert not trainer.network.training


def test_losses_are_means_since_the_last_reading():
    config = {"logging.every": 3, "mask.kind": "random", "optimizer.lr": 0.0, "label_dropout": 0.0}
    objective = small_objective(config, dropout=0.0)
    trainer, metrics = train(objective)
    assert [m.losses is not None for m in metrics] == [False, False, True] * 2
    assert list(metrics[2].losses) == ["remain", "forget"]
    expected = {"remain": [], "forget": []}
    for iteration in range(3):
        random = IterationRandom(0, iteration, CPU, TRAINING)
        for term, values in expected.items():
            batch = objective.draw(term, random)
            values.append(float(objective.losses(term, trainer.network, batch).mean()))
    for term, values in expected.items():
        assert metrics[2].losses[term] == pytest.approx(sum(values) / 3, rel=1e-5)


def test_autocast_stays_near_fp32():
    short = {"iterations": 1, "logging.every": 1, "mask.kind": "random"}
    full, low = (
        train(small_objective({**short, "precision": precision}))[1][0].losses
        for precision in ("fp32", "autocast")
    )
    assert full != low
    assert low["remain"] == pytest.approx(full["remain"], rel=0.02)


def test_what_a_run_is_of(tmp_path):
    before = small_objective().identity()
    assert small_objective().identity() == before
    renamed, other = small_model(), small_model()
    renamed.class_names = ("square", "circle", "star", "cross")
    its_images = replace(small_images(), class_names=renamed.class_names)
    other.scheduler = DDPMScheduler(1000, 1e-4, 0.03, "linear", clip_sample=False)
    for objective, named in (
        (small_objective(model=renamed, images=its_images), {"class names", "images"}),
        (small_objective(model=other), {"noise schedule"}),
        (small_objective(images=small_images(seed=1)), {"images"}),
    ):
        after = objective.identity()
        assert {what for what in before if before[what] != after[what]} == named
    with RunDirectory(tmp_path) as directory:
        train(small_objective(), run_directory=directory)
        with pytest.raises(PeckerError, match="another noise schedule"):
            train(small_objective(model=other), run_directory=directory)
