"""The small classifier, its folder, and TorchScript files in its place."""

import json
import zipfile

import pytest
import torch
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import SmallClassifier, load_classifier

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit.trace


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


def test_save_and_load(tmp_path):
    classifier = SmallClassifier(num_classes=10, width=8).eval()
    classifier.save(tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier")
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(loaded(images), classifier(images))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    names = sorted(p.name for p in (tmp_path / "classifier").iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_bad_folders(tmp_path):
    folder = tmp_path / "classifier"
    with pytest.raises(PeckerError, match="no such file or folder"):
        load_classifier(folder)
    folder.mkdir()
    with pytest.raises(PeckerError, match=r"config\.json is missing"):
        load_classifier(folder)
    SmallClassifier(num_classes=4, width=4).save(folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PeckerError, match="truncated"):
        load_classifier(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_classes": 5}))
    with pytest.raises(PeckerError, match="another network"):
        load_classifier(folder)
    (folder / "config.json").write_text(json.dumps({**config, "depth": 5}))
    with pytest.raises(PeckerError, match="not a SmallClassifier configuration"):
        load_classifier(folder)
    (folder / "config.json").write_text('{"num_classes": 4,')
    with pytest.raises(PeckerError, match="not a SmallClassifier configuration"):
        load_classifier(folder)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 5)

    def forward(self, images):
        flat = images.flatten(1)
        return self.linear(flat), flat[:, :9]


@pytest.mark.parametrize("with_features", [True, False])
def test_torchscript(tmp_path, with_features):
    module = Both() if with_features else nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
    images = torch.randn(3, 1, 16, 16)
    torch.jit.trace(module, images).save(str(tmp_path / "c.pt"))
    logits, features = load_classifier(tmp_path / "c.pt").logits_and_features(images)
    assert logits.shape == (3, 5)
    assert features.shape == ((3, 9) if with_features else (3, 5))


def test_torchscript_that_does_not_fit(tmp_path):
    path = tmp_path / "c.pt"
    images = torch.randn(3, 1, 16, 16)
    torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(256, 5)), images).save(str(path))
    with pytest.raises(PeckerError, match="fails on images"):
        load_classifier(path).logits_and_features(torch.randn(2, 1, 8, 8))
    torch.jit.trace(nn.ReLU(), images).save(str(path))
    with pytest.raises(PeckerError, match="must return logits"):
        load_classifier(path).logits_and_features(images)
    path.write_bytes(b"not a zip")
    with pytest.raises(PeckerError, match=r"not a checkpoint .* is .* a TorchScript file, written"):
        load_classifier(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/constants.pkl", b"")
    with pytest.raises(PeckerError, match="a TorchScript file that cannot be read"):
        load_classifier(path)


@pytest.mark.parametrize("name", ["num_classes", "in_channels", "width"])
def test_bad_sizes(name):
    with pytest.raises(PeckerError, match=name):
        SmallClassifier(**{"num_classes": 2, name: 0})


def test_wrong_images():
    with pytest.raises(PeckerError, match=r"\(N, 1, H, W\)"):
        SmallClassifier(num_classes=2)(torch.randn(2, 3, 16, 16))
