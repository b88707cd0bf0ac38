"""`pecker-fast train-classifier`: from image files to a judge that evaluate and erase take."""

import json

import pytest
import torch
from image_data import write_images
from methods.training_jobs import tiny_images

from pecker_fast import cli
from pecker_fast.datasets.loading import load_images
from pecker_fast.evaluate.classifier import SmallClassifier, load_classifier
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.resnet import ResNetClassifier

NAMES = ("circle", "square", "star")
SMALL = [
    "--arch", "small", "--iterations", "6", "--threads", "1",
    *(w for s in ("batch_size=6", "width=4", "logging.checkpoint_every=2", "lr_schedule=constant")
      for w in ("--set", s)),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Colours that a small network tells apart; read-only."""
    root = tmp_path_factory.mktemp("data")
    train, test = tiny_images(60), tiny_images(24)
    write_images(
        root,
        (train.images.numpy(), train.labels.numpy()),
        (test.images.numpy(), test.labels.numpy()),
        NAMES,
    )
    return root


def command(data, out, *arguments):
    return [
        "train-classifier", "--dataset", "images", "--data-root", data, "--out", out,
        *arguments,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A small classifier that has learnt its colours; read-only."""
    out = tmp_path_factory.mktemp("classifier") / "c"
    words = command(data, out, *SMALL, "--iterations", "60", "--set", "lr=0.01")
    assert cli.main([str(word) for word in words]) == 0
    return out


def test_card_and_statistics_are_those_of_the_network(finished, data):
    network = load_classifier(finished)
    assert isinstance(network, SmallClassifier)
    card = json.loads((finished / "card.json").read_text())
    test = load_images("images", data, "test")
    logits, _ = classify(network, test.images)
    accuracy = float((logits.argmax(1) == test.labels).float().mean())
    assert card["test_accuracy"] == accuracy > 0.9
    assert (card["test_count"], card["class_names"]) == (24, list(NAMES))
    train = load_images("images", data, "train")
    _, features = classify(network, train.images)
    expected = ClassStatistics.from_features(features, train.labels, 3)
    found = ClassStatistics.load(finished / "statistics.safetensors")
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.cov, expected.cov)
    assert found.source.endswith("60 training images, 8x8")


def test_resnet_starts_from_a_weights_file(run, refused, data, tmp_path):
    torch.save(ResNetClassifier(10, width=4).state_dict(), tmp_path / "w.pth")
    arguments = ["--iterations", 1, "--set", "batch_size=4", "--set", "width=4", "--threads", 1]
    arguments += ["--set", "input_size=16", "--pretrained", tmp_path / "w.pth"]
    done = run(*command(data, tmp_path / "c", *arguments))
    assert done.code == 0, done.err
    network = load_classifier(tmp_path / "c")
    assert isinstance(network, ResNetClassifier)
    assert (network.config["stem"], network.input_size, network.num_classes) == ("imagenet", 16, 3)
    card = json.loads((tmp_path / "c/card.json").read_text())
    assert card["started_from"]["file"] == "w.pth"
    assert card["config"]["lr"] == 1e-5
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:5000])
    refused(run(*command(data, tmp_path / "d", *arguments)), tmp_path / "w.pth")
    torch.save(ResNetClassifier(10, width=8).state_dict(), tmp_path / "w.pth")
    refused(run(*command(data, tmp_path / "d", *arguments)), tmp_path / "w.pth")
    assert not (tmp_path / "d").exists()


def test_several_processes_are_refused_by_name(run, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = run(*command(data, tmp_path / "c", *SMALL))
    assert done.code == 2 and "train-classifier: runs in one process" in done.err
