"""The curve of a run: points where they are due, kept over starts, shared by processes."""

import json

import torch

from pecker_fast.distributed import Ranks
from pecker_fast.evaluate.curve import ClassProbe, Curve, read_curve
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.sampling import Sampler


class Constant:
    """Takes every image for one class."""

    def __init__(self, index):
        self.index = index
        self.seen = []

    def logits_and_features(self, images):
        self.seen.append(len(images))
        logits = torch.zeros(len(images), 3)
        logits[:, self.index] = 1
        return logits, torch.randn(len(images), 2)


def curve_of(model, path, classifier, done=0, total=24):
    probe = ClassProbe(Judge(classifier, curve_images=(4, 5)), model, 1, Sampler(1, 0))
    return Curve(path, lambda: probe.draw(model, Ranks()), probe.measure, (done, total), Ranks())


def test_points_come_where_they_are_due(tiny_model, tmp_path):
    classifier = Constant(1)
    curve = curve_of(tiny_model, tmp_path / "curve.json", classifier)
    for iteration in range(25):
        curve.visit(iteration, 10.0 * iteration)
    assert [point.iteration for point in curve.points] == list(range(0, 25, 2))
    point = curve.points[3]
    # All images are taken for the class to forget; the five others round up to two classes of 3.
    assert (point.forget_accuracy, point.keep_accuracy) == (1.0, 0.0)
    assert (point.forget_count, point.keep_count, point.wall_s) == (4, 6, 60.0)
    assert point.frechet is None
    assert classifier.seen == [10] * 13
    assert read_curve(tmp_path / "curve.json") == curve.points


def test_a_run_that_is_taken_up_drops_what_lies_ahead(tiny_model, tmp_path):
    path = tmp_path / "curve.json"
    first = curve_of(tiny_model, path, Constant(0))
    for iteration in (0, 2, 4, 6):
        first.visit(iteration, float(iteration))
    second = curve_of(tiny_model, path, Constant(2), done=4)
    assert [point.iteration for point in second.points] == [0, 2, 4]
    second.visit(4, 99.0)  # is there already
    assert second.points[-1].wall_s == 4.0
    second.visit(6, 7.0)
    assert [point["wall_s"] for point in json.loads(path.read_text())] == [0, 2, 4, 7]
