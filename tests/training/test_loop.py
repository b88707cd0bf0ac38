"""The training loop against a plain one; resumed runs against uninterrupted ones."""

import copy

import pytest
import torch
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.methods.training_config import TeacherConfig
from pecker_fast.methods.training_loop import Training
from pecker_fast.runs.checkpoint import RunDirectory
from pecker_fast.runs.stopwatch import Stopwatch


def toy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.SiLU(), nn.Linear(8, 2))


def toy_loss(network):
    """Something that depends on the iteration, its random numbers and dropout."""

    def loss_of(iteration, random):
        x = random.normal((4, 3), torch.float32) + iteration
        return network(x).square().sum() * 10

    return loss_of


def settings(**changes):
    base = {"iterations": 12, "lr": 0.01, "logging": {"every": 3, "checkpoint_every": 4}}
    return TeacherConfig.model_validate({**base, **changes})


def training(directory=None, config=None, network=None, loss_of=None, **options):
    config = config or settings()
    network = network or toy()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    options = {"identity": "toy", "ema_decay": 0.9, **options}
    return Training(
        network, optimizer, loss_of or toy_loss(network), config, config.iterations,
        directory=directory, **options,
    )  # fmt: skip


def assert_same_bits(first, second):
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    for name, value in first.averages().items():
        assert torch.equal(value, second.averages()[name]), name


def plain_loop(network, losses, lr_of, decay, clip):
    """What the loop is to do, written out with nothing of the package."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    average = [p.detach().clone() for p in network.parameters()]
    norms = []
    for iteration, loss_of in enumerate(losses):
        optimizer.param_groups[0]["lr"] = lr_of(iteration)
        optimizer.zero_grad()
        loss_of(network).backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in network.parameters()))
        norms.append(float(norm))
        for p in network.parameters():
            p.grad *= min(1.0, clip / float(norm))
        optimizer.step()
        for a, p in zip(average, network.parameters(), strict=True):
            a.copy_(decay * a + (1 - decay) * p.detach())
    return average, norms


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_equals_a_plain_loop(schedule):
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(12, 5, 3, generator=generator)
    network = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1)).double()
    reference = copy.deepcopy(network)
    config = settings(lr_schedule=schedule, warmup=3, optimizer={"clip_norm": 0.5})

    def loss_of(network, iteration):
        scale = 100.0 if iteration % 2 else 0.01  # gradients above and below the limit
        return network(data[iteration].double()).square().mean() * scale

    ours = training(
        config=config, network=network, loss_of=lambda iteration, _: loss_of(network, iteration)
    )
    ours.run()

    def lr_of(iteration):
        if iteration < 3:
            return 0.01 * (iteration + 1) / 3
        return 0.01 if schedule == "constant" else 0.01 * (1 - (iteration - 3) / 9)

    losses = [lambda n, i=i: loss_of(n, i) for i in range(12)]
    average, norms = plain_loop(reference, losses, lr_of, 0.9, 0.5)
    assert min(norms) < 0.5 < max(norms)
    for ours_p, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours_p, theirs, rtol=1e-5, atol=1e-7)  # torch adds 1e-6 to norms
    for ours_a, theirs in zip(ours.averages().values(), average, strict=True):
        torch.testing.assert_close(ours_a, theirs, rtol=1e-5, atol=1e-7)


def test_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path):
    undisturbed = training()
    undisturbed.run()
    with RunDirectory(tmp_path) as directory:
        first = training(directory)
        for metrics in first.steps():
            if metrics.iteration == 7:  # the last checkpoint is of iteration 4
                break
    with RunDirectory(tmp_path) as directory:
        second = training(directory)
        assert second.iteration == 4
        second.run()
        assert directory.iterations() == [8, 12]
    assert_same_bits(undisturbed, second)


def test_a_finished_run_is_not_trained_further(tmp_path):
    with RunDirectory(tmp_path) as directory:
        done = training(directory)
        done.run()
        again = training(directory)
        assert list(again.steps()) == []
        assert_same_bits(done, again)


def test_a_longer_run_goes_on(tmp_path):
    undisturbed = training(config=settings(iterations=16))
    undisturbed.run()
    with RunDirectory(tmp_path) as directory:
        training(directory).run()
        longer = training(directory, settings(iterations=16))
        assert longer.iteration == 12
        longer.run()
    assert_same_bits(undisturbed, longer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": "other"}, "holds a run on other images"),
        ({"config": settings(lr=0.02)}, "lr 0.01, this one has 0.02"),
        ({"config": settings(iterations=8)}, "more than the 8 asked for"),
    ],
)
def test_another_run_is_not_taken_up(tmp_path, change, message):
    with RunDirectory(tmp_path) as directory:
        training(directory).run()
        with pytest.raises(PeckerError, match=message):
            training(directory, **change)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(tmp_path, value):
    network = toy()
    good = toy_loss(network)

    def loss_of(iteration, random):
        return good(iteration, random) * (value if iteration == 6 else 1)

    with RunDirectory(tmp_path) as directory:
        run = training(directory, network=network, loss_of=loss_of)
        with pytest.raises(PeckerError, match=r"at iteration 7: stopped; the checkpoint of iterat"):
            run.run()
        assert directory.iterations() == [4]


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    network = toy()

    def loss_of(iteration, random):
        if iteration == 5:
            network[0].weight.data[0, 0] = float("inf")
        return network[3].bias.square().sum()  # stays finite

    with RunDirectory(tmp_path) as directory:
        run = training(directory, network=network, loss_of=loss_of)
        with pytest.raises(PeckerError, match=r"the weight '0\.weight' is not finite after iterat"):
            run.run()
        assert directory.iterations() == [4]


def test_losses_are_means_over_what_was_not_yet_read(tmp_path):
    pytest.importorskip("tensorboard")
    network = toy()

    def loss_of(iteration, random):
        return network[3].bias.sum() * 0 + iteration

    config = settings(logging={"every": 3, "checkpoint_every": 100, "tensorboard": True})
    with RunDirectory(tmp_path) as directory:
        training(directory, config, network=network, loss_of=loss_of).run()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("loss")]
    assert points == [(3, 1.0), (6, 4.0), (9, 7.0), (12, 10.0)]


def test_without_an_average_the_last_weights_count():
    run = training(ema_decay=None)
    run.run()
    for name, param in run.network.named_parameters():
        assert torch.equal(run.averages()[name], param)


def test_seconds_of_training_go_on_after_a_resumption(tmp_path):
    with RunDirectory(tmp_path) as directory:
        first = training(directory)
        first.stopwatch = Stopwatch(1000.0)
        for metrics in first.steps():
            if metrics.iteration == 4:
                break
        assert 1000 < first.stopwatch.seconds < 2000
        resumed = training(directory)
        assert 1000 < resumed.stopwatch.seconds <= first.stopwatch.seconds
