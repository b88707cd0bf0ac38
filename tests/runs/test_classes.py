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
