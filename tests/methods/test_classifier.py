"""Classifiers: constants, the loss, resuming, and that they learn."""

import pytest
import torch
from image_data import random_images, write_images
from methods.training_jobs import CPU, tiny_images
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.resnet import ResNetClassifier
from pecker_fast.methods.classifier import ClassifierTrainer, load_split_images
from pecker_fast.methods.training_config import classifier_config
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.randomness import TRAINING, IterationRandom

TINY = {"batch_size": 6, "iterations": 6, "width": 4, "lr": 1e-3, "lr_schedule": "constant"}
TINY |= {"logging.checkpoint_every": 2, "logging.every": 2}


def tiny(arch="small", **changes):
    return classifier_config(arch, {**TINY, **changes})


def weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


# ---- configurations


def test_published_constants():
    """Of the ResNet-34 behind the published unlearning accuracy."""
    config = classifier_config("resnet34", pretrained=True)
    assert (config.lr, config.epochs, config.input_size) == (1e-5, 10, 224)
    assert config.optimizer.weight_decay == 5e-4
    assert (config.lr_schedule, config.warmup, config.noise) == ("constant", 0, 0)
    config = classifier_config("resnet34", {"epochs": 3})  # from scratch
    assert (config.input_size, config.epochs, config.optimizer.weight_decay) == (None, 3, 0.05)


def test_length_follows_from_epochs_and_warm_up_from_length():
    config = classifier_config("small", {"epochs": 2, "batch_size": 7})
    resolved = config.resolved(50)  # 100 / 7 = 14.3
    assert (resolved.iterations, resolved.warmup) == (15, 1)
    assert resolved.resolved(10**6) == resolved
    assert classifier_config("small").resolved(60_000).warmup == 200
    assert classifier_config("small", {"iterations": 3}).resolved(50).iterations == 3


@pytest.mark.parametrize(
    ("arch", "changes", "named"),
    [
        ("vgg", {}, "'vgg'; known are resnet34, small"),
        ("small", {"epoch": 1}, "'epoch'.*'epochs'"),
        ("resnet34", {"stem": "cifar"}, "stem .*fine-tuned"),
        ("resnet34", {"input_size": 0}, "input_size"),
    ],
)
def test_unknown_kinds_and_keys(arch, changes, named):
    with pytest.raises(PeckerError, match=named):
        classifier_config(arch, changes)


# ---- the loss


class Recording(torch.nn.Module):
    """Logits that depend on nothing, and what the network was shown."""

    def __init__(self, network):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        self.seen = []
        self.head = network.head

    def forward(self, images):
        self.seen.append(images)
        return self.logits.expand(len(images), 3)


def recorded(monkeypatch, images, iterations=1, **changes):
    import pecker_fast.methods.classifier as module

    network = Recording(SmallClassifier(3, 3, 4))
    monkeypatch.setattr(module, "_build", lambda *arguments: network)
    monkeypatch.setattr(module, "SmallClassifier", Recording)
    config = tiny(**changes)
    trainer = ClassifierTrainer(images, config, CPU)
    losses = [
        trainer.advance(trainer.draw(IterationRandom(config.seed, i, CPU, TRAINING)))[0].item()
        for i in range(iterations)
    ]
    return torch.cat(network.seen), losses


def test_loss_is_the_smoothed_cross_entropy(monkeypatch):
    images = tiny_images(6)  # a batch is all of them, two of each class
    _, losses = recorded(monkeypatch, images, label_smoothing=0.3, noise=0.0)
    log_p = F.log_softmax(torch.tensor([0.5, -1.0, 2.0]), dim=0)
    of_label = [-0.7 * log_p[k] - 0.3 * log_p.mean() for k in range(3)]
    assert losses[0] == pytest.approx(float(sum(of_label)) / 3, rel=1e-6)


def test_every_other_image_is_noisy_and_half_are_mirrored(monkeypatch):
    images = tiny_images(6)
    clean = images.batch(torch.arange(6), CPU)
    seen, _ = recorded(monkeypatch, images, 60, noise=0.2, flip=True)
    known = torch.cat([clean, clean.flip(-1)])
    distance = (seen[:, None] - known).square().mean((2, 3, 4)).sqrt()
    nearest, which = distance.min(dim=1)
    assert float(nearest[1::2].max()) == 0  # of each pair the second is clean
    assert 0.15 < float(nearest[::2].max()) < 0.25
    assert 0 < float(nearest[::2].min()) < 0.03
    assert float((which >= 6).float().mean()) == pytest.approx(0.5, abs=0.1)
    seen, _ = recorded(monkeypatch, images, 2, noise=0.0, flip=False)
    assert {tuple(row.flatten().tolist()) for row in seen} == {
        tuple(row.flatten().tolist()) for row in clean
    }


def trained_once(weights_too, optimizer, hold=False):
    """Weights before and after one step, from scratch or fine-tuned."""
    images, changes = tiny_images(40), {"iterations": 1, **optimizer}
    torch.manual_seed(3)
    given = ("w.pth", ResNetClassifier(5, width=4).state_dict()) if weights_too else None
    config = tiny("resnet34", input_size=32, **changes)
    trainer = ClassifierTrainer(images, config, CPU, weights=given)
    before = weights(trainer)
    if hold:  # where the gradient is 0
        nothing = trainer.network.fc.weight
        trainer.network.forward = lambda seen: (nothing * 0).sum().expand(len(seen), 3)
    list(trainer.run())
    return before, weights(trainer)


@pytest.mark.parametrize(("fine_tuned", "rate"), [(False, 1e-3), (True, 1e-2)])
def test_the_last_layer_of_a_fine_tuned_network_learns_faster(fine_tuned, rate):
    """Adam's first step has the size of the learning rate."""
    before, after = trained_once(fine_tuned, {"optimizer.weight_decay": 0.0})
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert moved["fc.weight"] == pytest.approx(rate, rel=1e-2)
    assert moved["conv1.weight"] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_decay_is_in_the_gradient_or_beside_it(fine_tuned):
    """AdamW shrinks a weight by lr x decay; Adam, which fine-tunes, moves it by ten times lr."""
    # An eps, or the smallest weights would move by less.
    optimizer = {"optimizer.weight_decay": 0.5, "optimizer.eps": 1e-20}
    before, after = (each["fc.weight"] for each in trained_once(fine_tuned, optimizer, hold=True))
    expected = before - 1e-2 * before.sign() if fine_tuned else before * (1 - 1e-3 * 0.5)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-7)


# ---- whole runs


@pytest.mark.parametrize("arch", ["small", "resnet34"])
def test_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, arch):
    """Statistics of batch norm included."""
    images = tiny_images()
    whole = ClassifierTrainer(images, tiny(arch), CPU)
    list(whole.run())
    with RunDirectory(tmp_path) as directory:
        trainer = ClassifierTrainer(images, tiny(arch), CPU, directory=directory)
        for metrics in trainer.run():
            if metrics.iteration == 3:
                break
        resumed = ClassifierTrainer(images, tiny(arch), CPU, directory=directory)
        assert resumed.iteration == 2
        list(resumed.run())
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_it_learns_and_its_figures_are_those_of_its_files(tmp_path):
    train, test = tiny_images(90), tiny_images(33)
    test.labels[0] = 1  # wrong on purpose: one of 33 cannot be right
    trainer = ClassifierTrainer(train, tiny(iterations=60, lr=1e-2, batch_size=15), CPU)
    list(trainer.run())
    measured = trainer.measure(test)
    card = measured.card
    assert card["test_accuracy"] == pytest.approx(32 / 33)
    assert card["class_test_accuracy"] == pytest.approx([1.0, 11 / 12, 1.0])
    assert (card["test_count"], card["train_count"], card["iterations"]) == (33, 90, 60)
    assert card["started_from"] is None and card["config"]["width"] == 4
    measured.network.save(tmp_path)
    loaded = SmallClassifier.load(tmp_path)
    x = train.batch(torch.arange(90), CPU)
    with torch.no_grad():
        features = loaded.logits_and_features(x)[1]
    expected = ClassStatistics.from_features(features, train.labels, 3)
    # Batches of another size, so other sums.
    torch.testing.assert_close(measured.statistics.mean, expected.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured.statistics.cov, expected.cov, rtol=1e-4, atol=1e-6)
    assert measured.statistics.source == "colours"


def test_autocast_computes_in_bf16_and_keeps_fp32_weights():
    seen = []
    trainer = ClassifierTrainer(tiny_images(), tiny(precision="autocast", iterations=1), CPU)
    head = trainer.network.head
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    list(trainer.run())
    assert seen == [torch.bfloat16]
    assert all(value.dtype == torch.float32 for value in weights(trainer).values())


# ---- pretrained weights


def test_pretrained_weights_are_the_start(tmp_path):
    torch.manual_seed(3)
    start = ResNetClassifier(5, width=4).state_dict()

    def trainer(arch="resnet34", **options):
        config = tiny(arch, input_size=32, iterations=1)
        return ClassifierTrainer(tiny_images(), config, CPU, weights=("w.pth", start), **options)

    with RunDirectory(tmp_path) as directory:
        tuned = trainer(directory=directory)
        ours = weights(tuned)
        assert all(torch.equal(ours[name], start[name]) for name in start if "fc." not in name)
        assert ours["fc.weight"].shape == (3, 32)
        list(tuned.run())
        assert tuned.measure(tiny_images()).card["started_from"]["file"] == "w.pth"
        start["conv1.weight"] += 1
        with pytest.raises(PeckerError, match="start"):
            trainer(directory=directory)
    with pytest.raises(PeckerError, match=r"w\.pth"):
        trainer("small")


# ---- which images


def test_held_out_images_are_not_trained_on(tmp_path):
    write_images(tmp_path, random_images(30, 3), random_images(12, 3, seed=1), ("a", "b", "c"))
    train, test = load_split_images("images", tmp_path, tiny(held_out=10))
    assert (len(train), len(test)) == (32, 10)
    rows = [tuple(image.flatten().tolist()) for image in torch.cat([train.images, test.images])]
    assert len(set(rows)) == 42
    same = load_split_images("images", tmp_path, tiny(held_out=10))[1]
    other = load_split_images("images", tmp_path, tiny(held_out=10, seed=1))[1]
    assert torch.equal(same.images, test.images)
    assert not torch.equal(other.images, test.images)
    plain = load_split_images("images", tmp_path, tiny())
    assert [len(part) for part in plain] == [30, 12]
    with pytest.raises(PeckerError, match=r"held_out 42: .* has 42 images"):
        load_split_images("images", tmp_path, tiny(held_out=42))


def test_images_that_do_not_do(tmp_path):
    few = tiny_images(4)  # classes 0, 1, 2, 0
    with pytest.raises(PeckerError, match=r"colours.*'colour 1'"):
        ClassifierTrainer(few, tiny(), CPU)
    write_images(tmp_path, random_images(30, 3), random_images(12, 3, side=4), ("a", "b", "c"))
    with pytest.raises(PeckerError, match="test images"):
        load_split_images("images", tmp_path, tiny())
