"""Teachers: the published loss and constants, several processes, and what comes out."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from methods.training_jobs import CPU, TINY, tiny_config, tiny_images, train_tiny
from torch import nn

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.methods.teacher import TeacherTrainer, build_network
from pecker_fast.methods.training_config import (
    RECIPES,
    load_teacher_config,
)
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.runs.randomness import TRAINING, IterationRandom
from pecker_fast.runs.settings import recipes_in

# ---- recipes


STL10 = {
    "dataset": "stl10", "iterations": 250_000, "network.channel_mult": [1, 2, 2, 2, 4],
    "network.attention_levels": [2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "iterations", "multipliers", "side", "parameters"),
    [
        ({}, 800_000, (1, 2, 2, 2), 32, 38_632_323),
        (STL10, 250_000, (1, 2, 2, 2, 4), 64, 83_159_683),
    ],
)
def test_the_recipe_is_the_published_one(changes, iterations, multipliers, side, parameters):
    """Of cifar10_train.yml and stl10_train.yml of the published code."""
    config = load_teacher_config("cifar10_teacher", changes)
    expected = {
        "dataset": changes.get("dataset", "cifar10"), "iterations": iterations, "batch_size": 128,
        "lr": 2e-4, "lr_schedule": "constant", "optimizer.beta1": 0.9, "optimizer.beta2": 0.999,
        "optimizer.eps": 1e-8, "optimizer.weight_decay": 0.0, "optimizer.clip_norm": 1.0,
        "ema.decay": 0.9999, "flip": True, "label_dropout": 0.1, "loss": "sum", "warmup": 0,
        "precision": "fp32", "without": None, "network.channel_mult": multipliers,
        "network.channels": 128, "network.dropout": 0.1,
    }  # fmt: skip
    assert config.flat().items() >= expected.items()
    with torch.device("meta"):
        network = build_network((3, side, side), 10, config)
    assert isinstance(network, DDPMUNet)
    assert sum(p.numel() for p in network.parameters()) == parameters
    stl = (RECIPES / "cifar10_teacher.yaml").read_text()
    assert all(key in stl for key in changes)  # as it says how to train that one


def test_every_recipe_is_complete_and_survives_yaml():
    for name in recipes_in(RECIPES):
        config = load_teacher_config(name)
        again = type(config).model_validate(yaml.safe_load(config.to_yaml()))
        assert again == config


@pytest.mark.parametrize(
    ("recipe", "changes", "named"),
    [
        ("small_teacher", {"chanels": 3}, "'network.channels'"),
        (None, {"label_dropout": 1.0}, "label_dropout"),
        (None, {"network.image_size": 32}, "network.image_size"),
        ("cifar_teacher", {}, "cifar10_teacher"),
    ],
)
def test_unknown_keys_and_values_are_named(recipe, changes, named):
    with pytest.raises(PeckerError, match=named):
        load_teacher_config(recipe, changes)


# ---- the loss


class Recording(nn.Module):
    """A network that predicts nothing and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
        self.calls = []

    def forward(self, x, t, labels):
        self.calls.append((x.detach(), t, labels))
        return SimpleNamespace(sample=x * 0 + self.zero)


def recorded(monkeypatch, images, iterations=1, **changes):
    """What the network saw in each iteration, and the loss."""
    network = Recording()
    network.config = SimpleNamespace(sample_size=images.image_shape[1], in_channels=3)
    monkeypatch.setattr("pecker_fast.methods.teacher.build_network", lambda *arguments: network)
    config = tiny_config(lr=0.0, **changes)
    trainer = TeacherTrainer(images, config, CPU)
    losses = []
    for iteration in range(iterations):
        random = IterationRandom(config.seed, iteration, CPU, TRAINING)
        losses.append(trainer.advance(trainer.draw(random))[0].item())
    return network.calls, losses


def ddpm_alphas():
    """abar_t of the linear schedule, written out."""
    product, alphas = 1.0, []
    for i in range(1000):
        product *= 1.0 - (1e-4 + (0.02 - 1e-4) * i / 999)
        alphas.append(product)
    return torch.tensor(alphas, dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_is_the_squared_noise_of_a_network_that_predicts_none(monkeypatch, reduction):
    images = tiny_images(6)  # a batch is all of them
    calls, losses = recorded(monkeypatch, images, flip=False, label_dropout=0.0, loss=reduction)
    x, t, labels = calls[0]
    alpha = ddpm_alphas()[t].view(-1, 1, 1, 1)
    clean = images.images.double() / 127.5 - 1
    squares = []
    for row in range(6):
        # The rows are shuffled: the image whose noise is nearest to a normal one.
        noises = (x[row].double() - alpha[row].sqrt() * clean) / (1 - alpha[row]).sqrt()
        squares.append(float(min(noises[labels[row] :: 3].square().sum((1, 2, 3)))))
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2]
    expected = sum(squares) / 6 / (1 if reduction == "sum" else 3 * 8 * 8)
    assert losses[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("flip", "share"), [(True, 0.5), (False, 0.0)])
def test_noise_times_labels_and_mirroring(monkeypatch, flip, share):
    calls, _ = recorded(monkeypatch, tiny_images(6), iterations=100, flip=flip)
    assert all(torch.equal(t[4:], 999 - t[:2]) for _, t, _ in calls)  # in pairs
    x, t, labels = (torch.cat(parts) for parts in zip(*calls, strict=True))
    assert int(t.min()) < 60 and int(t.max()) > 940
    late = x[t > 900]  # almost pure noise
    assert abs(float(late.mean())) < 0.05
    assert float(late.std()) == pytest.approx(1.0, abs=0.05)
    assert set(labels.tolist()) == {0, 1, 2, 3}  # 3 is "no class"
    assert float((labels == 3).float().mean()) == pytest.approx(0.1, abs=0.04)
    early = x[t < 150]  # the image still shows
    mirrored = early[..., :4].mean((1, 2, 3)) < early[..., 4:].mean((1, 2, 3))
    assert float(mirrored.float().mean()) == pytest.approx(share, abs=0.2 * share)


def test_left_out_class_is_never_seen_but_keeps_its_label(monkeypatch):
    calls, _ = recorded(monkeypatch, tiny_images(30), iterations=30, without="colour 1")
    labels = torch.cat([labels for _, _, labels in calls])
    assert set(labels.tolist()) == {0, 2, 3}
    model = TeacherTrainer(tiny_images(), tiny_config(iterations=1, without=1), CPU).model()
    assert (model.num_classes, model.figures["forget"]) == (3, "colour 1")


# ---- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_train_as_one(size):
    from distributed.processes import run_processes

    # SGD-like steps: Adam's first ones divide rounding by itself where a gradient is almost 0.
    changes = {"optimizer": {"eps": 1.0, "clip_norm": 5.0}, "lr": 0.05}
    alone = train_tiny(Ranks(), changes)
    start = train_tiny(Ranks(), {**changes, "lr": 0.0})
    outcomes = run_processes(train_tiny, size, changes)
    for outcome in outcomes:
        for name, value in alone.items():
            torch.testing.assert_close(outcome[name], value, rtol=1e-6, atol=1e-6, msg=name)
            assert torch.equal(outcome[name], outcomes[0][name])
    moved = max(float((alone[name] - start[name]).abs().max()) for name in alone)
    assert moved > 1e-3  # or the comparison above says nothing


@pytest.mark.slow
def test_processes_have_dropout_of_their_own():
    from distributed.processes import run_processes

    changes = {"network": {**TINY["network"], "dropout": 0.5}, "iterations": 1}
    first, second = run_processes(train_tiny, 2, changes)
    for name, value in first.items():  # gradients are summed: the same weights all the same
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("kind", ["ddpm", "unet2d"])
def test_model_folder_comes_back_whole(tmp_path, kind):
    network = {**TINY["network"], "kind": kind, "patch_size": 2, "channel_mult": [1, 1]}
    trainer = TeacherTrainer(tiny_images(), tiny_config(network=network), CPU)
    list(trainer.run())
    model = trainer.model()
    model.save(tmp_path)
    loaded = ModelFolder.load(tmp_path)
    assert loaded.class_names == ("colour 0", "colour 1", "colour 2")
    assert (loaded.image_shape, loaded.null_label) == ((3, 8, 8), 3)
    facts = loaded.figures["training"]
    assert (facts["images"], facts["iterations"], facts["processes"]) == ("colours", 6, 1)
    assert "forget" not in loaded.figures
    assert loaded.scheduler.config.clip_sample is False
    assert loaded.scheduler.config.variance_type == "fixed_large"  # as published models have it
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name])
    x, t, null = torch.zeros(1, *loaded.network_shape), torch.tensor([5]), torch.tensor([3])
    assert torch.isfinite(loaded.network(x, t, null).sample).all()


def test_without_dropped_labels_a_unet2d_has_no_null_label():
    config = tiny_config(network={**TINY["network"], "kind": "unet2d"}, label_dropout=0.0)
    model = TeacherTrainer(tiny_images(), config, CPU).model()
    assert model.null_label is None
    assert model.network.class_embedding.num_embeddings == 3


@pytest.mark.parametrize(
    ("changes", "side", "message"),
    [
        ({"network": {**TINY["network"], "patch_size": 3}}, 8, "multiple of network.patch_size 3"),
        ({"network": {**TINY["network"], "norm_num_groups": 3}}, 8, "group"),
        ({"network": {**TINY["network"], "kind": "unet2d", "norm_num_groups": 3}}, 8, "network: "),
        ({"without": "blue"}, 8, "unknown class 'blue'; the classes of colours are: 0 'colour 0'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, side, message):
    with pytest.raises(PeckerError, match=message):
        TeacherTrainer(tiny_images(side=side), tiny_config(**changes), CPU)
