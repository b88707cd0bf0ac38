"""The name of a class becomes its index."""

import pytest

from pecker_fast.errors import PeckerError
from pecker_fast.runs.classes import class_index

NAMES = ("cat", "Dog", "0")


@pytest.mark.parametrize(
    ("given", "index"),
    [("cat", 0), ("dog", 1), (" DOG ", 1), ("1", 1), (1, 1), ("0", 2), (0, 0), (2, 2)],
)
def test_names_and_numbers(given, index):
    assert class_index(given, NAMES, "a model") == index


@pytest.mark.parametrize("given", ["bird", "3", 3, -1, "-1", ""])
def test_a_class_that_there_is_not(given):
    with pytest.raises(PeckerError, match=r"a model.*0 'cat', 1 'Dog'"):
        class_index(given, NAMES, "a model")


def test_how_classes_get_names_is_said_where_they_have_none():
    with pytest.raises(PeckerError, match=r"pecker_fast\.json") as caught:
        class_index("dog", [f"class {n}" for n in range(1000)], "a model")
    assert "class_names" in str(caught.value) and "19 'class 19' and 980 more" in str(caught.value)
    with pytest.raises(PeckerError) as caught:
        class_index("9" * 5000, NAMES, "a model")
    assert "pecker_fast.json" not in str(caught.value) and len(str(caught.value)) < 300
