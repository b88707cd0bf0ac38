"""Statistics of real images, from a file of them or from the images."""

import numpy as np
import torch

from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.statistics_files import load_statistics
from pecker_fast.nn.winograd import running_winograd

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
LABELS = np.arange(30) % 3


def test_from_images(tiny_model, tmp_path):
    classifier, path = SmallClassifier(3, width=4).eval(), tmp_path / "real.npz"
    np.savez(path, images=PIXELS, labels=LABELS)
    found = load_statistics(path, tiny_model, classifier)
    with running_winograd(classifier):
        _, features = classifier.logits_and_features(torch.from_numpy(PIXELS).float() / 127.5 - 1)
    expected = ClassStatistics.from_features(features.detach(), torch.from_numpy(LABELS), 3)
    torch.testing.assert_close(found.mean, expected.mean)
    found.save(tmp_path / "real.safetensors")
    again = load_statistics(tmp_path / "real.safetensors", tiny_model, classifier)
    assert torch.equal(again.cov, found.cov) and again.source == "real.npz"
