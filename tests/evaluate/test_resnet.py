"""ResNet-34 against torchvision's; files that train_classifier.py of SA, SalUn, SFD saves."""

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


def like_trained(network):
    """Running statistics and shifts that are no longer 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if "bn" in name and value.is_floating_point():
                value.add_(0.2 * torch.rand(value.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return like_trained(torchvision.models.resnet34(num_classes=7)).eval()


def test_it_is_torchvisions_network(published):
    """Same names, shapes, logits and features, to rounding."""
    ours = ResNetClassifier(7, input_size=None).eval()
    ours.load_state_dict(published.state_dict())
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    pooled = {}
    handle = published.avgpool.register_forward_hook(
        lambda module, inputs, output: pooled.update(value=output.flatten(1))
    )
    with torch.no_grad():
        expected = published(images)
        logits, features = ours.logits_and_features(images)
    handle.remove()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)  # means in another order
    torch.testing.assert_close(features, pooled["value"], rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in ResNetClassifier(1000).parameters()) == 21_797_672


def test_images_are_resized_as_pillow_does():
    seen = []
    classifier = ResNetClassifier(2, width=2, input_size=24).eval()
    classifier.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    classifier(image)
    resized = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 127.5 - 1
    # Pillow rounds to 8 bits, after each of two passes.
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1.1 / 127.5)


def test_grey_images_are_seen_in_three_equal_channels():
    torch.manual_seed(0)
    grey = ResNetClassifier(3, in_channels=1, width=4, stem="cifar", input_size=None).eval()
    colour = ResNetClassifier(3, width=4, stem="cifar", input_size=None).eval()
    colour.load_state_dict(grey.state_dict())
    images = torch.randn(2, 1, 12, 12)
    assert torch.equal(grey(images), colour(images.repeat(1, 3, 1, 1)))


def test_many_images_are_judged_in_parts(monkeypatch):
    monkeypatch.setattr("pecker_fast.evaluate.resnet._AT_ONCE", 3)
    torch.manual_seed(0)
    classifier = ResNetClassifier(3, width=4, stem="cifar", input_size=None).eval()
    images = torch.randn(7, 3, 8, 8)
    sizes = []
    classifier.conv1.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    logits, features = classifier.logits_and_features(images)
    assert sizes == [3, 3, 1]
    assert (logits.shape, features.shape) == ((7, 3), (7, 32))
    torch.testing.assert_close(logits[5:6], classifier(images[5:6]), rtol=1e-4, atol=1e-5)


def test_pretrained_weights_but_for_the_last_layer(published):
    torch.manual_seed(5)
    classifier = ResNetClassifier(3)
    head = classifier.fc.weight.detach().clone()
    old = {n: v for n, v in published.state_dict().items() if not n.endswith("batches_tracked")}
    classifier.start_from(old, "weights.pth")
    assert torch.equal(classifier.fc.weight, head)
    assert torch.equal(classifier.layer3[5].bn2.running_var, published.layer3[5].bn2.running_var)
    assert torch.equal(classifier.conv1.weight, published.conv1.weight)
    with pytest.raises(PeckerError, match=r"weights\.pth.*conv1"):
        ResNetClassifier(3, width=2).start_from(old, "weights.pth")


@pytest.fixture(scope="module")
def theirs():
    """As train_classifier.py makes it: torchvision's network with a last layer of its own."""
    torch.manual_seed(0)
    network = torchvision.models.resnet34()
    network.fc = torch.nn.Linear(network.fc.in_features, len(NAMES))
    return like_trained(network).eval()


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
def test_layouts_of_published_files(theirs, layout, tmp_path):
    path = tmp_path / "cifar10_resnet34.pth"
    content = LAYOUTS[layout](theirs.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=layout != "alone")
    judge = load_classifier(path, NAMES)
    assert isinstance(judge, ResNetClassifier)
    assert (judge.num_classes, judge.in_channels, judge.input_size) == (3, 3, 224)
    assert not judge.training and not any(p.requires_grad for p in judge.parameters())
    for name, value in theirs.state_dict().items():
        if not name.endswith("_tracked"):
            assert torch.equal(judge.state_dict()[name], value), name


def test_it_judges_as_the_published_evaluation_does(theirs):
    """classifier_evaluation.py: Pillow's resizing of the PNG, then mean and deviation of 1/2."""
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
        judge = ResNetClassifier.published(theirs.state_dict(), "stl10_resnet34.pth")
        logits, features = judge.logits_and_features(images.permute(0, 3, 1, 2) / 127.5 - 1)
    assert features.shape == (2, 512)
    # Pillow rounds to 8 bits after each of two passes. ImageNet's mean and deviation would be
    # further off than the two images are from each other.
    scale = (expected[0] - expected[1]).abs().max()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05 * float(scale))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer1.0.bn1.weight", None),
        ("layer1.3.conv1.weight", torch.zeros(1)),
        ("fc.weight", None),
        ("fc.weight", torch.zeros(3, 2048)),
        ("fc.bias", None),
        ("fc.bias", torch.zeros(0)),
        ("fc.bias", torch.tensor(1.0)),
        ("conv1.weight", torch.zeros(64, 3, 3, 3)),
    ],
)
def test_another_network(theirs, name, value):
    weights = {**theirs.state_dict(), name: value}
    with pytest.raises(PeckerError, match=rf"c\.pth: .*{name}"):
        ResNetClassifier.published({n: v for n, v in weights.items() if v is not None}, "c.pth")
