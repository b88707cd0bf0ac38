"""The shipped first stage and its recipe: gone in tens of iterations, in one step and in many."""

import pytest

from pecker_fast import erase
from pecker_fast.data import first_stage_folder, teacher_folder
from pecker_fast.erasure.attack import attack


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_class_goes_in_tens_of_iterations_and_from_every_door(tmp_path):
    judge = teacher_folder() / "classifier"
    erased = erase(
        teacher_folder(),
        out=tmp_path / "run",
        config="demo",
        first_stage=first_stage_folder(),
        classifier=judge,
        per_class=50,
    )
    assert erased.frozen.frozen_changed == 0
    assert 0 < erased.facts.iterations <= 40
    curve = erased.report.to_dict()["curve"]
    start, end = curve[0], curve[-1]
    assert start["forget_accuracy"] > 0.9  # the first stage draws the class
    # A probe of 180 images: its 95 % interval is some 3 % wide.
    assert end["forget_accuracy"] <= 0.05 and end["keep_accuracy"] >= start["keep_accuracy"] - 0.06
    asked = attack(tmp_path / "run", judge, images=60).asked
    shares = {each.way: each.found.value for each in asked}
    assert shares["one step"] <= 0.1 and shares["DDIM, 10 steps"] <= 0.15, shares
