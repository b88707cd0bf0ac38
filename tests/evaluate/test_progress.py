"""The strip of previews: it grows, goes on after a stop, and stays small."""

import pytest
import torch
from PIL import Image

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.grid import PromptGroup
from pecker_fast.evaluate.previews import ORIGINAL, ProgressStrip

GROUPS = (PromptGroup("Forgotten", ("a cat", "my cat"), True), PromptGroup("Kept", ("a tree",)))


def flat(*levels, side=8):
    return torch.tensor(levels).float().div(255).view(-1, 1, 1, 1).expand(-1, 3, side, side)


def test_a_strip_grows_and_goes_on_after_the_run_was_stopped(tmp_path):
    strip, widths = ProgressStrip(tmp_path, GROUPS), []
    for iteration in (ORIGINAL, 0, 100, 1050):
        strip.add(iteration, flat(10, 20, 30))
        widths.append(Image.open(strip.path).size[0])
    assert widths[-1] - widths[-2] == widths[-2] - widths[-3] > 88
    again = ProgressStrip(tmp_path, GROUPS)
    assert again.iterations == [ORIGINAL, 0, 100, 1050]
    again.add(575, flat(200, 50, 60))  # later ones are of a run that was stopped
    assert ProgressStrip(tmp_path, GROUPS).iterations == [ORIGINAL, 0, 100, 575]
    other = ProgressStrip(tmp_path, (PromptGroup("", ("a dog",)),))
    assert other.iterations == []


def test_previews_of_large_images_are_kept_small(tmp_path):
    strip = ProgressStrip(tmp_path, GROUPS)
    strip.add(0, flat(40, 80, 120, side=512))
    assert (tmp_path / strip.PREVIEWS_NAME).stat().st_size < 3 * 3 * 192 * 192 + 1000


def test_damaged_previews(tmp_path):
    (tmp_path / ProgressStrip.PREVIEWS_NAME).write_bytes(b"no such thing")
    with pytest.raises(PeckerError, match=ProgressStrip.PREVIEWS_NAME):
        ProgressStrip(tmp_path, GROUPS)
