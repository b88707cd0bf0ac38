import pytest
import torch

from pecker_fast.distill.conditions import ClassConditions
from pecker_fast.errors import PeckerError
from pecker_fast.runs.randomness import TRAINING, IterationRandom


def drawn_at(iteration):
    return IterationRandom(0, iteration, torch.device("cpu"), TRAINING)


NAMES = ("Boot", "Bag", "Coat", "Shirt")


@pytest.mark.parametrize("forget", [0, 2, 3])
def test_labels_of_the_two_halves(forget):
    conditions = ClassConditions(forget, 1, 4)
    drawn = conditions.draw(400, drawn_at(0))
    assert len(drawn) == 800
    remain, forgotten = drawn.student[:400], drawn.student[400:]
    assert torch.equal(drawn.teacher[:400], remain)
    assert (forgotten == forget).all()
    assert (drawn.teacher[400:] == 1).all()
    counts = torch.bincount(remain, minlength=4)
    assert counts[forget] == 0
    # 400 draws over 3 kept classes: 133 each, standard deviation 9.4; 5 of them.
    kept = counts[[index for index in range(4) if index != forget]]
    assert ((kept - 400 / 3).abs() < 47).all()


def test_random_override_is_a_kept_class_per_sample():
    drawn = ClassConditions(2, "random", 4).draw(200, drawn_at(0))
    assert set(drawn.teacher[200:].tolist()) == {0, 1, 3}
    assert set(drawn.student[200:].tolist()) == {2}


@pytest.mark.parametrize("bad", [4, -1, "hat", "4", "-1"])
def test_unknown_class_is_refused_with_the_known_ones(bad):
    with pytest.raises(PeckerError, match="0 'Boot', 1 'Bag', 2 'Coat', 3 'Shirt'"):
        ClassConditions(bad, 1, 4, NAMES)
    with pytest.raises(PeckerError, match=r"override: unknown class"):
        ClassConditions(0, bad, 4, NAMES)


def test_several_classes_each_with_its_override():
    conditions = ClassConditions(["boot", 3, "Coat"], ["Bag", "random", 4], 5, (*NAMES, "Hat"))
    assert conditions.pairs == ((0, 1), (3, None), (2, 4)) and conditions.kept == (1, 4)
    drawn = conditions.draw(900, drawn_at(0))
    remain, forget = drawn.student[:900], drawn.student[900:]
    assert set(remain.tolist()) == {1, 4} and torch.equal(drawn.teacher[:900], remain)
    # 300 of each expected, standard deviation 14; 5 of them.
    assert ((torch.bincount(forget, minlength=5)[[0, 2, 3]] - 300).abs() < 71).all()
    instead = drawn.teacher[900:]
    assert (instead[forget == 0] == 1).all() and (instead[forget == 2] == 4).all()
    assert set(instead[forget == 3].tolist()) == {1, 4}
    assert ClassConditions([0, 2], 1, 4).pairs == ((0, 1), (2, 1))


def test_one_class_in_a_list_is_drawn_as_one_class():
    one, listed = (ClassConditions(forget, "random", 4) for forget in (2, [2]))
    drawn = [each.draw(50, drawn_at(3)) for each in (one, listed)]
    assert all(torch.equal(a, b) for a, b in zip(*(each.tensors() for each in drawn), strict=True))


@pytest.mark.parametrize(
    ("forget", "override", "named"),
    [
        (1, 1, "same class 'Bag'"),
        ("bag", "Bag", "same class 'Bag'"),
        ([0, 1], [2, 3, 2], "2 classes to forget and 3 overrides"),
        ([0, "Boot"], 1, "'Boot' is named twice"),
        ([0, 1], [2, 0], "class 'Boot', in place of 'Bag'"),
        ([0, 1], [2, 1], "same class 'Bag'"),
        ([0, 1, 2, 3], "random", "all classes"),
        ([], 1, "empty list"),
    ],
)
def test_classes_that_do_not_fit(forget, override, named):
    with pytest.raises(PeckerError, match=named):
        ClassConditions(forget, override, 4, NAMES)
    with pytest.raises(PeckerError, match="4 classes"):
        ClassConditions(0, 1, 4, NAMES[:3])
    with pytest.raises(PeckerError, match="nothing left to keep"):
        ClassConditions(0, "random", 1)
