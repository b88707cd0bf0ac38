"""ResNet-34 against torchvision's, its folder, and weights that are not its own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier, SmallClassifier, load_classifier
from pecker_fast.evaluate.classifier_files import statistics_beside
from pecker_fast.evaluate.resnet import ResNetClassifier

torchvision = pytest.importorskip("torchvision")


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


def test_it_trains_as_torchvisions_does():
    """Gradients in train mode, where batch norm counts; tiny images through the small stem."""
    torch.manual_seed(0)
    ours = like_trained(ResNetClassifier(4, width=64, stem="cifar", input_size=None)).train()
    theirs = torchvision.models.resnet34(num_classes=4).train()
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    ours.double(), theirs.double()  # batch norm of few values amplifies rounding
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1])
    for network in (ours, theirs):
        F.cross_entropy(network(images), labels).backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-12, msg=name)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name), msg=name)


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


def test_save_and_load(tmp_path):
    torch.manual_seed(0)
    classifier = ResNetClassifier(5, in_channels=1, width=4, stem="cifar", input_size=16).eval()
    classifier.save(tmp_path)
    loaded = load_classifier(tmp_path)
    assert isinstance(loaded, ResNetClassifier) and isinstance(loaded, Classifier)
    images = torch.randn(2, 1, 12, 12)
    assert torch.equal(loaded(images), classifier(images))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert statistics_beside(tmp_path) is None
    (tmp_path / "statistics.safetensors").touch()
    assert statistics_beside(tmp_path) == tmp_path / "statistics.safetensors"
    SmallClassifier(3, width=4).save(tmp_path / "small")
    assert isinstance(load_classifier(tmp_path / "small"), SmallClassifier)


def test_bad_folders(tmp_path):
    ResNetClassifier(5, width=2).save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for changes, message in (
        ({"arch": "vit"}, "arch must be resnet34, got 'vit'"),
        ({"num_classes": 6}, "another network"),
        ({"depth": 3}, "not a ResNetClassifier configuration"),
        ({"stem": "big"}, "stem must be imagenet or cifar, got 'big'"),
        ({"in_channels": 4}, "1 or 3 channels, got 4"),
        ({"width": 0}, "at least 1, got 5 and 0"),
    ):
        path.write_text(json.dumps({**config, **changes}))
        with pytest.raises(PeckerError, match=message):
            load_classifier(tmp_path)
    path.write_text("[1]")
    with pytest.raises(PeckerError, match=r"config.json: not a .* configuration \(a list\)"):
        load_classifier(tmp_path)


def test_other_classes_than_those_on_the_card_are_refused(tmp_path):
    """Two data sets of ten classes differ in their order: every figure would be wrong."""
    SmallClassifier(3, width=2).save(tmp_path)
    load_classifier(tmp_path, ("dog", "cat"))  # without a card nothing is known
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"class_names": ["Cat", "dog", "emu"]}))
    for names in (("cat", "Dog"), ("class 0", "class 1", "class 2"), ("cat", "dog", "emu"), ()):
        load_classifier(tmp_path, names)
    with pytest.raises(PeckerError, match=r"label 1 is 'dog' there, but 'emu' in .* same order"):
        load_classifier(tmp_path, ("cat", "emu", "dog"))
    with pytest.raises(PeckerError, match="label 1 is 'dog' there, but 'class 2'"):
        load_classifier(tmp_path, ("cat", "class 2"))
    card.write_text("{}")
    with pytest.raises(PeckerError, match=r"card\.json: cannot be read"):
        load_classifier(tmp_path)


def test_pretrained_weights_but_for_the_last_layer(published):
    torch.manual_seed(5)
    classifier = ResNetClassifier(3)
    head = classifier.fc.weight.detach().clone()
    old = {n: v for n, v in published.state_dict().items() if not n.endswith("batches_tracked")}
    classifier.start_from(old, "weights.pth")
    assert torch.equal(classifier.fc.weight, head)
    assert torch.equal(classifier.layer3[5].bn2.running_var, published.layer3[5].bn2.running_var)
    assert torch.equal(classifier.conv1.weight, published.conv1.weight)


def test_wrong_images():
    with pytest.raises(PeckerError, match=r"\(N, 3, H, W\), got \(2, 1, 16, 16\)"):
        ResNetClassifier(2, width=2)(torch.randn(2, 1, 16, 16))
