"""The small classifier, and folders of classifiers."""

import json

import pytest
import torch
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import Classifier, SmallClassifier, load_classifier
from pecker_fast.evaluate.classifier_files import statistics_beside
from pecker_fast.evaluate.resnet import ResNetClassifier


@pytest.mark.parametrize("size", [8, 14, 16, 28, 33])
def test_shapes(size):
    classifier = SmallClassifier(num_classes=7, in_channels=3, width=4).eval()
    images = torch.randn(5, 3, size, size)
    logits, features = classifier.logits_and_features(images)
    assert logits.shape == (5, 7) and features.shape == (5, 64)
    assert torch.equal(classifier(images), logits)
    assert torch.equal(classifier.logits_and_features(images)[1], features)


def test_one_image_does_not_depend_on_the_others():
    classifier = SmallClassifier(num_classes=3, width=4).eval()
    images = torch.randn(4, 1, 16, 16)
    assert torch.allclose(classifier(images)[2:3], classifier(images[2:3]), atol=1e-6)


def test_it_learns():
    # Two classes that differ in where the bright half is: a network that trains gets them all.
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (128,), generator=generator)
    images = 0.3 * torch.randn(128, 1, 16, 16, generator=generator)
    images[labels == 0, :, :8] += 1
    images[labels == 1, :, 8:] += 1
    torch.manual_seed(0)
    classifier = SmallClassifier(num_classes=2, width=4)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(images), labels).backward()
        optimizer.step()
    assert (classifier.eval()(images).argmax(1) == labels).float().mean() > 0.98


@pytest.mark.parametrize(
    "made",
    [
        lambda: SmallClassifier(num_classes=10, width=8),
        lambda: ResNetClassifier(5, in_channels=1, width=4, stem="cifar", input_size=16),
    ],
)
def test_save_and_load(tmp_path, made):
    classifier = made().eval()
    classifier.save(tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier")
    images = torch.randn(3, 1, 16, 16)
    assert type(loaded) is type(classifier) and isinstance(loaded, Classifier)
    assert torch.equal(loaded(images), classifier(images))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    names = sorted(p.name for p in (tmp_path / "classifier").iterdir())
    assert names == ["config.json", "model.safetensors"]
    assert statistics_beside(tmp_path / "classifier") is None
    (tmp_path / "classifier" / "statistics.safetensors").touch()
    assert statistics_beside(tmp_path / "classifier") is not None


LARGE = ResNetClassifier, {"num_classes": 4, "in_channels": 3, "width": 2, "stem": "cifar"}


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        *((LARGE, {name: value}, f"config.json.*{name}")
          for name, value in (("num_classes", None), ("width", 2.5), ("width", []))),
        (LARGE, {"in_channels": 4}, "channels"),
        (LARGE, {"stem": "big"}, "stem"),
        (LARGE, {"stem": {}}, "stem"),
        (LARGE, {"input_size": "224"}, "input_size"),
        (LARGE, {"input_size": 0}, "input_size"),
        (LARGE, {"arch": "vit"}, "arch"),
    ],
)  # fmt: skip
def test_configurations_that_are_wrong(tmp_path, kind, changes, named):
    made, config = kind
    made(**config).save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(PeckerError, match=named):
        load_classifier(tmp_path)


def test_other_classes_than_those_on_the_card_are_refused(tmp_path):
    """Two data sets of ten classes differ in their order: every figure would be wrong."""
    SmallClassifier(3, width=2).save(tmp_path)
    load_classifier(tmp_path, ("dog", "cat"))  # without a card nothing is known
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"class_names": ["Cat", "dog", "emu"]}))
    for names in (("cat", "Dog"), ("class 0", "class 1", "class 2"), ("cat", "dog", "emu"), ()):
        load_classifier(tmp_path, names)
    for names in (("cat", "emu", "dog"), ("cat", "class 2")):
        with pytest.raises(PeckerError, match="label 1 is 'dog'"):
            load_classifier(tmp_path, names)
    for content in ("{}", "[]", '{"class_names": [1, 2]}', '{"class_names": null}', "[" * 10**5):
        card.write_text(content)
        with pytest.raises(PeckerError, match=r"card\.json"):
            load_classifier(tmp_path)


@pytest.mark.parametrize("classifier", [SmallClassifier(2), ResNetClassifier(2, 1, width=2)])
def test_wrong_images(classifier):
    with pytest.raises(PeckerError, match=r"\(N, 1, H, W\)"):
        classifier(torch.randn(2, 3, 16, 16))
