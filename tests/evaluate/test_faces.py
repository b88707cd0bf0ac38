"""Figures of a recogniser, counted by hand, and objects that are none."""

import pytest
import torch

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.faces import FaceRecogniser

FACES = [
    [{"Ann": 0.9, "Bob": 0.1}],  # Ann, asked for
    [{"Ann": 0.3, "Bob": 0.7}],  # Bob in her place
    [],  # nobody
    [{"Ann": 0.4, "Bob": 0.3}, {"Ann": 0.05, "Bob": 0.95}],  # the surest face is Bob's
    [{"Bob": 1.0}],  # the prompt names nobody
    [{}],  # a face, and no name
]
LABELS = ["ann", "Ann", "Ann", "Ann", None, "Ann"]


def test_figures_by_hand():
    seen = []

    def recognise(images):
        seen.append(len(images))
        found = FACES[sum(seen) - len(images) :][: len(images)]
        return found

    images = torch.rand(6, 3, 4, 4)
    figures = FaceRecogniser(recognise, "mine").measure(iter(torch.split(images, 4)), [], LABELS)
    assert seen == [4, 2]
    assert (figures.image_count, figures.found) == (6, 5)
    assert (figures.label_count, figures.recognised) == (4, 1)
    assert figures.probability == pytest.approx((0.9 + 0.3 + 0.4 + 0.0) / 4)
    found = figures.to_dict()
    assert found["recognised_share"] == 0.25
    low, high = found["found_interval"]
    assert 0.36 < low < 5 / 6 < high < 1


def test_nobody_at_all():
    figures = FaceRecogniser(lambda images: [[], []], "x").measure(
        torch.rand(2, 3, 4, 4), [], ["a", "b"]
    )
    assert (figures.found, figures.label_count, figures.probability) == (0, 0, None)
    assert figures.to_dict()["recognised_share"] is None


MODULE = """
class Judge:
    def __call__(self, images):
        return [[{"cat": 1.0}] for _ in images]

class Needy(Judge):
    def __init__(self, file):
        pass

def function(images):
    return [[] for _ in images]

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_judge.py").write_text(MODULE)
    (tmp_path / "broken_judge.py").write_text("raise SystemError('x')")
    monkeypatch.syspath_prepend(tmp_path)


def test_classes_and_functions_are_loaded(module):
    images = torch.rand(2, 3, 4, 4)
    assert FaceRecogniser.load("trusted:own_judge:Judge").recognise(images) == [[{"cat": 1.0}]] * 2
    assert FaceRecogniser.load("trusted:own_judge:function").recognise(images) == [[], []]


@pytest.mark.parametrize(
    "name",
    ["own_judge:Judge", "trusted:own_judge", "trusted:own_judge:", "trusted::Judge",
     "trusted:own_judge:a.b", "trusted:nowhere_at_all:x", "trusted:own_judge:missing",
     "trusted:own_judge:number", "trusted:own_judge:Needy", "trusted:broken_judge:x"],
)  # fmt: skip
def test_what_is_no_recogniser(module, name):
    with pytest.raises(PeckerError, match="recogniser"):
        FaceRecogniser.load(name)


@pytest.mark.parametrize(
    "given",
    [None, [], [[]], [[{"a": 2.0}], []], [[{"a": float("nan")}], []], [[{1: 0.5}], []], [3, 4],
     [["cat"], []]],
)  # fmt: skip
def test_what_is_no_list_of_faces(given):
    with pytest.raises(PeckerError, match="mine"):
        FaceRecogniser(lambda images: given, "mine").measure(torch.rand(2, 3, 4, 4), [], ["a", "b"])
