"""Figures of a set of images: denominators, limits, and what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch

from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.classifying import classify, classify_with_early
from pecker_fast.evaluate.forgetting import evaluate_images
from pecker_fast.evaluate.frechet import ClassStatistics, FeatureStatistics, frechet_distance
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.reference import ClassFigures, real_beside
from pecker_fast.evaluate.sampling import Sampler, balanced_labels


class Written:
    """A judge whose verdict is written in the first pixels: logits = the first K pixels."""

    def __init__(self, classes=3):
        self.classes = classes

    def logits_and_features(self, images):
        flat = images.flatten(1)
        return flat[:, : self.classes] * 100, flat


def images_of(verdicts):
    """One 2x2 image per verdict; NaN-free, with pixel `verdict` bright."""
    images = torch.full((len(verdicts), 1, 2, 2), -1.0)
    for row, verdict in enumerate(verdicts):
        images[row].view(-1)[verdict] = 1.0
    return images


def test_every_share_has_its_own_denominator():
    # Asked 3 times for 0: called 1, 1, 2. Twice for 1: both right. 5 times for 2: 4 right.
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    images = images_of([1, 1, 2, 1, 1, 2, 2, 2, 2, 0])
    result = evaluate_images(images, labels, Written(), None, forget=0, override=1)
    assert result.forget_accuracy == 0.0
    assert result.override_accuracy == 2 / 3
    assert result.keep_accuracy == 6 / 7
    assert result.class_accuracy == (0.0, 1.0, 4 / 5)
    assert (result.forget_count, result.keep_count) == (3, 7)
    assert result.frechet is None


def test_probability_and_entropy_at_the_limits():
    # The judge is certain: all other probabilities underflow to exactly 0, and 0 log 0 is 0.
    labels = torch.tensor([0, 1])
    sure = evaluate_images(images_of([0, 1]) * 100, labels, Written(), None, forget=0)
    assert sure.forget_probability == 1.0 and sure.forget_entropy == 0.0
    unsure = evaluate_images(torch.zeros(2, 1, 2, 2), labels, Written(), None, forget=0)
    assert unsure.forget_probability == pytest.approx(1 / 3)
    assert unsure.forget_entropy == pytest.approx(math.log(3))


def test_frechet_distances_compare_with_the_kept_classes():
    labels = torch.arange(60) % 3
    real, fake = torch.randn(60, 1, 2, 2), torch.randn(60, 1, 2, 2)
    statistics = ClassStatistics.from_features(real.flatten(1), labels, 3)
    result = evaluate_images(fake, labels, Written(), statistics, forget=2)
    kept = labels != 2
    target = FeatureStatistics.from_features(real[kept].flatten(1))
    over_kept = FeatureStatistics.from_features(fake[kept].flatten(1))
    over_all = FeatureStatistics.from_features(fake.flatten(1))
    assert result.frechet == pytest.approx(frechet_distance(over_kept, target))
    assert result.frechet_all == pytest.approx(frechet_distance(over_all, target))
    assert result.frechet_real_count == 40


def test_where_a_figure_comes_from():
    torch.manual_seed(0)
    judge, other = SmallClassifier(3, width=4).eval(), SmallClassifier(3, width=4).eval()
    labels = torch.arange(12) % 3
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    statistics = ClassStatistics.from_features(torch.randn(60, 64), torch.arange(60) % 3, 3, "real")
    result = evaluate_images(images, labels, judge, statistics, 0)
    assert result.frechet_source == "real"
    assert result.judge.startswith("SmallClassifier ")
    assert result.judge != evaluate_images(images, labels, other, None, 0).judge
    values = json.loads(json.dumps(result.to_dict()))
    assert values["unlearning_accuracy"] == 1 - result.forget_accuracy
    assert len(values["class_accuracy"]) == 3


class Shifted(Written):
    """Sees the next class after the one that is written."""

    def logits_and_features(self, images):
        logits, features = super().logits_and_features(images)
        return logits.roll(1, dims=1), features


def test_a_second_judge():
    labels, images = torch.tensor([0, 0, 1, 2, 2]), images_of([0, 2, 1, 2, 1])
    result = evaluate_images(images, labels, Written(), None, 0, second=Shifted())
    # It sees 1, 0, 2, 0, 2: half of the forgotten class, the other half than the first judge.
    assert (result.forget_accuracy, result.second.forget_accuracy) == (0.5, 0.5)
    assert (result.second.keep_accuracy, result.second.judge) == (1 / 3, "Shifted")
    assert result.seen_as == (1, 0, 1) and result.class_counts == (2, 1, 2)
    alike = evaluate_images(images, labels, Written(), None, 0, second=Written())
    assert alike.second == replace(alike, second=None)
    assert json.loads(json.dumps(alike.to_dict()))["second"]["keep_accuracy"] == 2 / 3


def test_features_of_an_earlier_layer_have_a_distance_of_their_own():
    torch.manual_seed(0)
    judge = SmallClassifier(3, width=4).eval()
    real, fake = torch.randn(90, 1, 8, 8).clamp(-1, 1), torch.randn(90, 1, 8, 8).clamp(-1, 1) * 0.5
    labels = torch.arange(90) % 3
    _, last, early = classify_with_early(judge, real)
    assert early.shape == (90, 16)
    torch.testing.assert_close(early, judge.body[:6](real).mean((2, 3)))
    assert not judge.body[5]._forward_hooks
    statistics = ClassStatistics.from_features(last, labels, 3, early=early)
    result = evaluate_images(fake, labels, judge, statistics, 0)
    _, last, early_fake = classify_with_early(judge, fake)
    kept = labels != 0
    target = FeatureStatistics.from_features(early[kept])
    expected = frechet_distance(FeatureStatistics.from_features(early_fake[kept]), target)
    assert result.frechet_early == pytest.approx(expected) and result.frechet_early > 0
    assert result.frechet_early_interval.low < expected < result.frechet_early_interval.high
    assert evaluate_images(fake, labels, Written(), None, 0).frechet_early is None


def test_real_images_on_the_card_of_a_classifier(tmp_path):
    labels = torch.arange(60) % 3
    verdicts = labels.clone()
    verdicts[:3] = 2  # one of each class is taken for class 2
    images = images_of(verdicts.tolist()) + 0.01 * torch.randn(60, 1, 2, 2)
    statistics = ClassStatistics.from_features(torch.randn(90, 4), torch.arange(90) % 3, 3)
    figures = ClassFigures.of_real(images, labels, Written(), statistics, "real ones")
    assert figures.confusion == ((19, 0, 1), (0, 19, 1), (0, 0, 20)) and figures.per_class == 20
    assert (figures.steps, figures.source, figures.early(1)) == (0, "real ones", None)
    kept = FeatureStatistics.from_features(images.flatten(1)[labels != 1])
    expected = frechet_distance(kept, statistics.pooled([0, 2]))
    assert figures.frechet(1) == pytest.approx(expected)
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"test_figures": figures.to_dict()}))
    assert real_beside(tmp_path) == figures and real_beside(tmp_path, 2) is None
    seen = figures.recognition(("a", "b", "c"), 1)
    assert (seen["forget"], seen["keep"]) == (Share(19, 20), Share(39, 40))
    assert seen.taken_for("c") == Share(1, 20) and list(seen.classes) == ["a", "c"]
    card.write_text("{}")  # of an earlier version
    assert real_beside(tmp_path) is None is real_beside(tmp_path / "none")


def test_teacher_figures_agree_with_an_evaluation(tiny_model):
    labels = balanced_labels(3, 20)
    statistics = ClassStatistics.from_features(torch.randn(60, 64), labels, 3)
    sampler = Sampler(steps=2, seed=9)
    images = to_uint8(sampler.sample(tiny_model, labels))
    figures = ClassFigures.of_images(images, labels, Written(), statistics, sampler, first=6)
    for forget in range(3):
        result = evaluate_images(images, labels, Written(), statistics, forget, sampler=sampler)
        assert (result.sampler, result.steps, result.seed) == ("2 DDIM steps", 2, 9)
        assert figures.forget_accuracy(forget) == result.forget_accuracy
        assert figures.keep_accuracy(forget) == pytest.approx(result.keep_accuracy)
        assert figures.frechet(forget) == pytest.approx(result.frechet)
    first = classify(Written(), images[:6])[0].argmax(1)
    assert figures.first_correct == int((first == labels[:6]).sum())
    stored = json.loads(json.dumps(figures.to_dict()))
    assert ClassFigures.from_dict(stored) == figures


def test_broken_teacher_figures():
    with pytest.raises(PeckerError, match="teacher figures"):
        ClassFigures.from_dict({"steps": 50})


@pytest.mark.parametrize(
    ("labels", "classes", "real", "named"),
    [
        ([1, 1], 3, None, "0 images of the forgotten class"),
        ([0, 0], 3, None, "and 0 of the others"),
        ([0, 1], 4, None, "model has 4"),
        ([0, 1], 3, 2, "of 2 classes"),
    ],
)
def test_bad_input(labels, classes, real, named):
    statistics = None
    if real is not None:
        known = torch.arange(8) % real
        statistics = ClassStatistics.from_features(torch.randn(8, 4), known, real)
    given = (images_of([0, 1]), torch.tensor(labels), Written(), statistics)
    with pytest.raises(PeckerError, match=named):
        evaluate_images(*given, 0, num_classes=classes)


@pytest.mark.parametrize(
    "images", [torch.full((2, 1, 2, 2), float("nan")), torch.zeros(0, 1, 2, 2)]
)
def test_images_that_nothing_can_be_said_of(images):
    with pytest.raises(PeckerError, match="evaluation"):
        classify(Written(), images)
