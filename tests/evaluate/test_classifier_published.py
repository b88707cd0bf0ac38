"""The classifiers that train_classifier.py of SA, SalUn and SFD saves, as judges."""

import argparse
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.resnet import ResNetClassifier

torchvision = pytest.importorskip("torchvision")

NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def theirs():
    """As train_classifier.py makes it: torchvision's network with a last layer of its own."""
    torch.manual_seed(0)
    network = torchvision.models.resnet34()
    network.fc = torch.nn.Linear(network.fc.in_features, len(NAMES))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if "bn" in name and value.is_floating_point():  # as if it were trained
                value.add_(0.2 * torch.rand(value.shape, generator=generator))
    return network.eval()


def wrapped(weights):
    return OrderedDict({f"module.{name}": value for name, value in weights.items()})


LAYOUTS = {
    "alone": lambda weights: weights,
    "DataParallel": wrapped,
    "checkpoint": lambda weights: {"state_dict": weights, "epoch": 9},
    "checkpoint, DataParallel": lambda weights: {"model": wrapped(weights), "acc": 95.03},
    "old": lambda weights: {n: v for n, v in weights.items() if not n.endswith("_tracked")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_layouts(theirs, layout, zipped, tmp_path):
    path = tmp_path / "cifar10_resnet34.pth"
    content = LAYOUTS[layout](theirs.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    judge = load_classifier(path, NAMES)
    assert isinstance(judge, ResNetClassifier)
    assert (judge.num_classes, judge.in_channels, judge.input_size) == (3, 3, 224)
    assert not judge.training and not any(p.requires_grad for p in judge.parameters())
    for name, value in theirs.state_dict().items():
        if not name.endswith("_tracked"):
            assert torch.equal(judge.state_dict()[name], value), name


def test_it_judges_as_the_published_evaluation_does(theirs, tmp_path):
    """classifier_evaluation.py: Pillow's resizing of the PNG, then mean and deviation of 1/2."""
    torch.save(theirs.state_dict(), tmp_path / "stl10_resnet34.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    smooth = [Image.fromarray(p).resize((32, 32), Image.Resampling.BICUBIC) for p in pixels]
    steps = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize((224, 224)),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    images = torch.stack([torch.from_numpy(np.array(image)) for image in smooth])
    with torch.no_grad():
        expected = theirs(torch.stack([steps(image) for image in smooth]))
        judge = load_classifier(tmp_path / "stl10_resnet34.pth", NAMES)
        logits, features = judge.logits_and_features(images.permute(0, 3, 1, 2) / 127.5 - 1)
    assert features.shape == (2, 512)
    # Pillow rounds to 8 bits after each of two passes. ImageNet's mean and deviation would be
    # further off than the two images are from each other.
    scale = (expected[0] - expected[1]).abs().max()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05 * float(scale))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.bn1.weight": None}, r"'layer1\.0\.bn1\.weight' is missing; expected the state"),
        ({"layer1.3.conv1.weight": torch.zeros(1)}, "is none of ResNet-34's"),
        ({"fc.bias": None}, r"must be \(classes, 512\) and .* got \(3, 512\) and None; expected"),
        ({"fc.bias": torch.zeros(4)}, r"got \(3, 512\) and \(4,\)"),
        ({"fc.bias": torch.tensor(1.0)}, r"got \(3, 512\) and \(\);"),
        ({"fc.weight": torch.zeros(3, 2048)}, r"got \(3, 2048\) and \(3,\)"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, "width 64 and the stem for ImageNet"),
    ],
)
def test_another_network(theirs, change, message, tmp_path):
    weights = {**theirs.state_dict(), **change}
    path = tmp_path / "c.pth"
    torch.save({name: value for name, value in weights.items() if value is not None}, path)
    with pytest.raises(PeckerError, match=message) as error:
        load_classifier(path)
    assert str(error.value).startswith(f"classifier {path}: ")


def test_no_code_is_run_and_the_message_says_what_is_taken(tmp_path):
    path = tmp_path / "c.pth"
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(
        PeckerError, match=r"would run code.*state_dict.*; a classifier is a folder"
    ):
        load_classifier(path)
    torch.save({"args": argparse.Namespace()}, path)
    with pytest.raises(
        PeckerError, match=r"torch\.jit\.trace.* or the state dict of torchvision's"
    ):
        load_classifier(path)
    with pytest.raises(PeckerError, match=r"no such file .* or the state dict of torchvision's"):
        load_classifier(tmp_path / "none.pth")


def test_its_outputs_must_fit(theirs, tmp_path):
    path = tmp_path / "c.pth"
    torch.save(theirs.state_dict(), path)
    for names in ((), NAMES[:2], NAMES):  # it may know more
        load_classifier(path, names)
    with pytest.raises(PeckerError, match="3 classes, but what it is to judge has 4; give"):
        load_classifier(path, (*NAMES, "dog"))
    head = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save({**theirs.state_dict(), **head}, path)
    with pytest.raises(PeckerError, match=r"1,000 classes.*ImageNet, .*train-classifier --pret"):
        load_classifier(path, NAMES)
