"""A model small enough to sample in milliseconds, and detectors of nudity."""

import pytest
from tiny_models import model_of_shapes


@pytest.fixture
def tiny_model():
    return model_of_shapes()


@pytest.fixture
def detector(tmp_path):
    """Makes a detector whose file gives these anchors."""
    from nudity_files import BREAST, anchors, write_file  # onnx takes a while to load

    from pecker_fast.evaluate.nudity import NudeNetDetector

    def make(*entries, probes=(), threshold=0.25, file=None, **arguments):
        output = anchors(*entries or [(8, 8, 4, 4, BREAST, 0.5)])
        path = write_file(tmp_path / "d.onnx", output, probes, **(file or {}))
        return NudeNetDetector(path, threshold, **arguments)

    return make


@pytest.fixture
def figures(monkeypatch):
    """Collects the matplotlib figures that are written."""
    from matplotlib.figure import Figure

    found, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kw: (found.append(self), save(self, *args, **kw))
    )
    return found
