"""The curve of a run: points where they are due, kept over starts, shared by processes."""

import json
from dataclasses import replace

import pytest
import torch
from inception_weights import small_inception

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.curve import ClassProbe, Curve, read_curve
from pecker_fast.evaluate.fidelity import fidelity_figures
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


@pytest.fixture
def inception(weights):
    return small_inception(weights)


def real_images(model, count=30, seed=3):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *model.image_shape), generator=generator)
    labels = torch.arange(count) % model.num_classes
    return ImageSet(pixels.to(torch.uint8), labels, model.class_names, "noise")


@pytest.mark.slow
def test_fid_of_a_point_is_that_of_its_kept_images(tiny_model, tmp_path, inception):
    real = real_images(tiny_model)
    judge = Judge(Constant(0), curve_images=(4, 10), inception=inception, real=real)
    sampler = Sampler(1, 0)
    probe = ClassProbe(judge, tiny_model, 1, sampler)
    fid = probe.measure(probe.draw(tiny_model, Ranks()), 0)["fid"]
    labels = torch.tensor([1, 1, 1, 1, *[0, 2] * 5])
    pixels = to_uint8(sampler.sample(tiny_model, labels))
    features = [
        inception.features(part, "x")
        for part in (pixels[labels != 1], real.images[real.labels != 1])
    ]
    assert fid == pytest.approx(fidelity_figures(*features, inception).fid)


def test_real_images_of_other_classes_or_sizes_are_refused(tiny_model, inception):
    real = real_images(tiny_model)
    renamed = replace(real, class_names=("a", "b", "c"))
    small = replace(real, images=real.images[:, :, :4, :4])
    for other, named in ((renamed, "classes"), (small, "4x4")):
        with pytest.raises(PeckerError, match=named):
            Judge(inception=inception, real=other).fid(tiny_model, 0)
