"""The strip of previews: it grows, goes on after a stop, is thinned out, and stays small."""

import pytest
import torch

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.grid import PromptGroup
from pecker_fast.evaluate.progress import ProgressStrip

GROUPS = (PromptGroup("Forgotten", ("a cat", "my cat"), True), PromptGroup("Kept", ("a tree",)))


def flat(*levels, side=8):
    return torch.tensor(levels).float().div(255).view(-1, 1, 1, 1).expand(-1, 3, side, side)


def columns(figure):
    """Titles of the columns from left to right."""
    titles = [t for t in figure.axes[0].texts if t.get_ha() == "center"]
    return [t.get_text() for t in sorted(titles, key=lambda t: t.get_position()[0])]


def test_a_strip_grows_and_goes_on_after_the_run_was_stopped(tmp_path, figures):
    strip = ProgressStrip(tmp_path, GROUPS)
    strip.add_original(flat(10, 20, 30), "original, 25 steps")
    for iteration in (100, 0, 1050):
        strip.add(iteration, flat(40, 50, 60))
    assert columns(figures[-1]) == ["original,\n25 steps", "0", "100", "1,050"]
    again = ProgressStrip(tmp_path, GROUPS)
    assert again.iterations == [0, 100, 1050] and again.has_original
    again.drop_after(100)
    again.add(575, flat(200, 50, 60))
    assert ProgressStrip(tmp_path, GROUPS).iterations == [0, 100, 575]
    assert columns(figures[-1])[-1] == "575"


def test_a_strip_of_other_prompts_starts_anew(tmp_path):
    ProgressStrip(tmp_path, GROUPS).add(0, flat(10, 20, 30))
    other = ProgressStrip(tmp_path, (PromptGroup("", ("a dog",)),))
    assert other.iterations == []
    other.add(5, flat(10))
    assert ProgressStrip(tmp_path, GROUPS).iterations == []


def test_many_previews_are_thinned_out_but_first_and_last_stay(tmp_path, monkeypatch, figures):
    monkeypatch.setattr(ProgressStrip, "MAX_COLUMNS", 4)
    strip = ProgressStrip(tmp_path, (PromptGroup("", ("a",)),))
    strip.add_original(flat(5))
    for iteration in range(9):
        strip.add(iteration, flat(100 + 10 * iteration))
    assert columns(figures[-1]) == ["original", "0", "4", "8"]
    assert strip.iterations == list(range(9))


def test_previews_of_large_images_are_kept_small(tmp_path):
    strip = ProgressStrip(tmp_path, GROUPS)
    strip.add(0, flat(40, 80, 120, side=512))
    assert (tmp_path / strip.PREVIEWS_NAME).stat().st_size < 3 * 3 * 192 * 192 + 1000


def test_damaged_previews_and_wrong_counts(tmp_path):
    strip = ProgressStrip(tmp_path, GROUPS)
    with pytest.raises(PeckerError, match="2 images for 3 prompts"):
        strip.add(0, flat(0, 0))
    with pytest.raises(PeckerError, match="no prompts"):
        ProgressStrip(tmp_path, ())
    assert not list(tmp_path.iterdir())
    (tmp_path / strip.PREVIEWS_NAME).write_bytes(b"no such thing")
    with pytest.raises(PeckerError, match=strip.PREVIEWS_NAME):
        ProgressStrip(tmp_path, GROUPS)
