"""A run of any method against a plain loop; resumed runs against uninterrupted ones."""

import copy

import pytest
import torch
from torch import nn

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.methods.training_config import TrainingConfig
from pecker_fast.runs import run as run_module
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.ema import FullEma
from pecker_fast.runs.learner import Learner
from pecker_fast.runs.metrics import ONE_LOSS
from pecker_fast.runs.run import Run

CPU = torch.device("cpu")


class ToyRun(Run):
    """The smallest method: a loss of (network, random numbers), Adam, an average."""

    lower = "lr"
    terms = (ONE_LOSS,)

    def __init__(self, network, loss_of, config, *, identity="toy", directory=None, ranks=None):
        super().__init__(
            config, CPU, lambda: {"images": identity}, directory=directory, ranks=ranks
        )
        self.network, self.loss_of = network, loss_of
        self.ema = FullEma(network, 0.9)
        clip = config.optimizer.clip_norm
        make = lambda network, mask, lr: torch.optim.Adam(network.parameters(), lr)  # noqa: E731
        self.learner = Learner(network, None, config.lr, make, clip_norm=clip)
        self.learners.append(self.learner)
        self.begin()

    def draw(self, random):
        return random

    def advance(self, random):
        self.learner.learn()
        loss = self.loss_of(self.network, random)
        loss.backward()
        self.learner.step()
        self.ema.update()
        return [loss]

    def networks(self):
        yield "", self.network

    def parts(self):
        return {"network": self.network, "optimizer": self.learner, "average": self.ema}


def toy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.SiLU(), nn.Linear(8, 2))


def toy_loss(network, random):
    """Something that depends on the iteration, its random numbers and dropout."""
    x = random.normal((4, 3), torch.float32) + random.iteration
    return network(x).square().sum() * 10


def settings(**changes):
    base = {"iterations": 12, "lr": 0.01, "logging": {"every": 3, "checkpoint_every": 4}}
    return TrainingConfig.model_validate({**base, **changes})


def training(directory=None, config=None, network=None, loss_of=toy_loss, **options):
    network = toy() if network is None else network
    return ToyRun(network, loss_of, config or settings(), directory=directory, **options)


def trained(*arguments, **options):
    run = training(*arguments, **options)
    list(run.run())
    return run


def assert_same_bits(first, second):
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    for name, value in first.ema.averages.items():
        assert torch.equal(value, second.ema.averages[name]), name


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

    ours = trained(
        config=config, network=network, loss_of=lambda n, random: loss_of(n, random.iteration)
    )

    def lr_of(iteration):
        if iteration < 3:
            return 0.01 * (iteration + 1) / 3
        return 0.01 if schedule == "constant" else 0.01 * (1 - (iteration - 3) / 9)

    losses = [lambda n, i=i: loss_of(n, i) for i in range(12)]
    average, norms = plain_loop(reference, losses, lr_of, 0.9, 0.5)
    assert min(norms) < 0.5 < max(norms)
    for ours_p, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours_p, theirs, rtol=1e-5, atol=1e-7)  # torch adds 1e-6 to norms
    for ours_a, theirs in zip(ours.ema.averages.values(), average, strict=True):
        torch.testing.assert_close(ours_a, theirs, rtol=1e-5, atol=1e-7)


def test_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path):
    undisturbed = trained()
    with RunDirectory(tmp_path) as directory:
        for metrics in training(directory).run():
            if metrics.iteration == 7:  # the last checkpoint is of iteration 4
                break
    with RunDirectory(tmp_path) as directory:
        second = training(directory)
        assert second.iteration == 4
        list(second.run())
        assert directory.iterations() == [8, 12]
        again = training(directory)
        assert list(again.run()) == []
        longer = trained(directory, settings(iterations=16))
        assert len(directory.iterations()) == 2
    assert_same_bits(undisturbed, second)
    assert_same_bits(undisturbed, again)
    assert_same_bits(trained(config=settings(iterations=16)), longer)


def test_every_process_needs_a_sample():
    with pytest.raises(PeckerError, match="batch_size 4 for 5 processes: each needs one sample"):
        training(config=settings(batch_size=4), ranks=Ranks(rank=0, size=5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(tmp_path, value):
    def loss_of(network, random):
        return toy_loss(network, random) * (value if random.iteration == 6 else 1)

    with RunDirectory(tmp_path) as directory:
        with pytest.raises(
            PeckerError,
            match=rf"^the loss is {value} at iteration 7: stopped; the checkpoint of iteration 4 "
            "is intact; lower lr$",
        ):
            trained(directory, loss_of=loss_of)
        assert directory.iterations() == [4]


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    def loss_of(network, random):
        if random.iteration == 5:
            network[0].weight.data[0, 0] = float("inf")
        return network[3].bias.square().sum()  # stays finite

    with RunDirectory(tmp_path) as directory:
        with pytest.raises(PeckerError, match=r"the weight '0\.weight' is not finite after iterat"):
            trained(directory, loss_of=loss_of)
        assert directory.iterations() == [4]


def test_losses_are_means_over_what_was_not_yet_read(tmp_path):
    pytest.importorskip("tensorboard")

    def loss_of(network, random):
        return network[3].bias.sum() * 0 + random.iteration

    config = settings(logging={"every": 3, "checkpoint_every": 100, "tensorboard": True})
    with RunDirectory(tmp_path) as directory:
        metrics = list(training(directory, config, loss_of=loss_of).run())
    read = [(m.iteration, m.losses["loss"]) for m in metrics if m.losses is not None]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("loss")]
    assert points == read == [(3, 1.0), (6, 4.0), (9, 7.0), (12, 10.0)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is told to go on."""
    now = [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    return now


def test_seconds_of_training_go_on_after_a_resumption(tmp_path, clock):
    def slow_loss(network, random):
        clock[0] += 10
        return toy_loss(network, random)

    with RunDirectory(tmp_path) as directory:
        first = training(directory, loss_of=slow_loss)
        for metrics in first.run():
            clock[0] += 1000  # the caller judges images
            if metrics.iteration == 5:
                break
        assert first.stopwatch.seconds == 50
        resumed = training(directory, loss_of=slow_loss)
        assert resumed.stopwatch.seconds == 40  # of the checkpoint: iteration 5 is done again
        list(resumed.run())
        assert resumed.stopwatch.seconds == 120
