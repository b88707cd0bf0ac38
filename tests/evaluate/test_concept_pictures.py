"""Pictures of a concept: every image where it belongs, labels that fit, strips that go on."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.concept_pictures import (
    Block,
    ProgressStrip,
    PromptGroup,
    plot_before_after,
    plot_prompts,
)

GROUPS = (
    PromptGroup("Forgotten: cat", ("a cat", "my cat"), forgotten=True),
    PromptGroup("Unrelated", ("a tree",)),
)
SIDE = 8  # shown as 88 x 88 pixels


def flat(*levels, channels=3, side=SIDE):
    """Images of one grey each, levels in [0, 255]."""
    return torch.tensor(levels).float().div(255).view(-1, 1, 1, 1).expand(-1, channels, side, side)


def places(path, level):
    """Centre (x, y) and number of the pixels of exactly this grey; the edges of text do not count.

    The median is the image's even where letters have a pixel of that grey.
    """
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    found = np.argwhere((pixels == level).all(axis=2))
    if len(found) < 1000:
        return None, None, 0
    return (*np.median(found[:, ::-1], axis=0), len(found))


def red(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (pixels[..., 0] > 150) & (pixels[..., 1] < 80)


def test_every_image_is_where_its_prompt_and_column_are(tmp_path):
    path = tmp_path / "p.png"
    before = flat(10, 20, 30, 40, 50, 60, channels=1)
    after = flat(110, 120, 130, 140, 150, 160, channels=1)
    plot_before_after(path, GROUPS, before, after)
    x, y = {}, {}
    for level in (10, 20, 30, 40, 50, 60, 110, 120, 130, 140, 150, 160):
        x[level], y[level], count = places(path, level)
        assert abs(count - 88 * 88) < 2 * 88, level  # a row of pixels may fall between two
    # Within a pixel: positions in inches need not fall on whole ones.
    columns = [[x[first + 20 * row] for row in range(3)] for first in (10, 20, 110, 120)]
    rows = [[y[20 * row + first] for first in (10, 20, 110, 120)] for row in range(3)]
    for lines in (columns, rows):
        assert all(max(line) - min(line) <= 1 for line in lines)
        assert all(max(a) + 80 < min(b) for a, b in itertools.pairwise(lines))


def test_the_forgotten_rows_are_marked(tmp_path):
    for name, groups in (("marked", GROUPS), ("plain", (PromptGroup("all", ("a", "b", "c")),))):
        plot_before_after(tmp_path / f"{name}.png", groups, flat(0, 0, 0), flat(0, 0, 0))
    assert red(tmp_path / "marked.png").sum() > 1000 and red(tmp_path / "plain.png").sum() == 0


def test_large_images_are_reduced_and_small_ones_keep_their_pixels(tmp_path):
    small = flat(40, 80, 120).clone()
    small[..., ::2] = 0
    plot_prompts(tmp_path / "small.png", GROUPS, [Block("", small)])
    # Two greys only: nothing was smoothed between them.
    assert places(tmp_path / "small.png", 40)[2] == pytest.approx(88 * 44, rel=0.03)
    large = flat(40, 80, 120, side=512)
    plot_prompts(tmp_path / "large.png", GROUPS, [Block("", large)])
    assert places(tmp_path / "large.png", 40)[2] == pytest.approx(160 * 160, rel=0.03)


def test_images_that_are_not_square(tmp_path):
    wide = flat(40, 80, 120)[:, :, :4]
    plot_prompts(tmp_path / "p.png", GROUPS, [Block("", wide)])
    assert places(tmp_path / "p.png", 40)[2] == pytest.approx(88 * 44, rel=0.03)


def test_long_prompts_are_wrapped_and_cut(tmp_path):
    long = "a very long prompt about a cat that " * 20
    sizes = []
    for prompt in ("a cat", long, "x" * 700):
        groups = (PromptGroup("", (prompt,)),)
        plot_prompts(tmp_path / "p.png", groups, [Block("", flat(0))])
        sizes.append(Image.open(tmp_path / "p.png").size)
    # As wide as the short one but for letters that are wider than most, and at most six lines.
    assert all(abs(width - sizes[0][0]) < 40 for width, _ in sizes)
    assert sizes[0][1] < sizes[1][1] < sizes[0][1] + 80


@pytest.mark.parametrize(
    "prompt", ["$a_{b$", "猫の写真", "line\nbreak\ttab", "", "\U0001f408 <b>&"]
)
def test_any_text_is_a_prompt(tmp_path, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = (PromptGroup(prompt, (prompt,)),)
        plot_prompts(tmp_path / "p.png", groups, [Block(prompt, flat(0))])
    assert places(tmp_path / "p.png", 0)[2] > 88 * 86


def test_a_diverged_network_is_drawn_black(tmp_path):
    images = flat(100, 100, 100).clone()
    images[0] = torch.nan
    plot_prompts(tmp_path / "p.png", GROUPS, [Block("", images)])
    assert places(tmp_path / "p.png", 0)[2] > 88 * 86


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (flat(0, 0, 0, 0), "4 images for 3 prompts"),
        (flat(0, 0, 0) * 2 - 1, r"must lie in \[0, 1\], got -1 to -1"),
        (flat(0, 0, 0)[:, :2], "must be"),
        (flat(0, 0, 0)[:0], "must be"),
        (flat(0, 0, 0)[0], "must be"),
    ],
)
def test_bad_images(tmp_path, images, message):
    with pytest.raises(PeckerError, match=message):
        plot_before_after(tmp_path / "p.png", GROUPS, flat(0, 0, 0), images)
    assert not list(tmp_path.iterdir())


def test_a_strip_grows_by_a_column_a_preview(tmp_path):
    strip = ProgressStrip(tmp_path, GROUPS)
    strip.add_original(flat(10, 20, 30), "original, 25 steps")
    strip.add(100, flat(70, 80, 90))
    strip.add(0, flat(40, 50, 60))
    x = [places(strip.path, level)[0] for level in (10, 40, 70)]
    assert x == sorted(x) and strip.iterations == [0, 100] and strip.has_original
    assert all(places(strip.path, level)[2] for level in (20, 30, 50, 60, 80, 90))


def test_a_strip_goes_on_after_the_run_was_stopped(tmp_path):
    strip = ProgressStrip(tmp_path, GROUPS)
    strip.add_original(flat(10, 20, 30), "first")
    for iteration in (0, 50, 100):
        strip.add(iteration, flat(40 + iteration, 50, 60))
    again = ProgressStrip(tmp_path, GROUPS)
    assert again.iterations == [0, 50, 100] and again.has_original
    again.drop_after(50)
    again.add(75, flat(200, 50, 60))
    last = ProgressStrip(tmp_path, GROUPS)
    assert last.iterations == [0, 50, 75]
    assert [places(last.path, level)[2] > 0 for level in (10, 40, 90, 140, 200)] == [
        True, True, True, False, True,
    ]  # fmt: skip


def test_a_strip_of_other_prompts_starts_anew(tmp_path):
    ProgressStrip(tmp_path, GROUPS).add(0, flat(10, 20, 30))
    other = ProgressStrip(tmp_path, (PromptGroup("", ("a dog",)),))
    assert other.iterations == []
    other.add(5, flat(10))
    assert ProgressStrip(tmp_path, GROUPS).iterations == []


def test_many_previews_are_thinned_out_but_first_and_last_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(ProgressStrip, "MAX_COLUMNS", 4)
    strip = ProgressStrip(tmp_path, (PromptGroup("", ("a",)),))
    strip.add_original(flat(5))
    for iteration in range(9):
        strip.add(iteration, flat(100 + 10 * iteration))
    shown = [i for i in range(9) if places(strip.path, 100 + 10 * i)[2]]
    assert shown == [0, 4, 8] and places(strip.path, 5)[2]
    assert strip.iterations == list(range(9))


def test_previews_of_large_images_are_kept_small(tmp_path):
    strip = ProgressStrip(tmp_path, GROUPS)
    strip.add(0, flat(40, 80, 120, side=512))
    assert (tmp_path / strip.PREVIEWS_NAME).stat().st_size < 3 * 3 * 192 * 192 + 1000
    assert places(strip.path, 80)[2] == pytest.approx(160 * 160, rel=0.03)


def test_damaged_previews_and_wrong_counts(tmp_path):
    strip = ProgressStrip(tmp_path, GROUPS)
    with pytest.raises(PeckerError, match="2 images for 3 prompts"):
        strip.add(0, flat(0, 0))
    with pytest.raises(PeckerError, match="there are no prompts"):
        ProgressStrip(tmp_path, ())
    assert not list(tmp_path.iterdir())
    (tmp_path / strip.PREVIEWS_NAME).write_bytes(b"no such thing")
    with pytest.raises(PeckerError, match="delete it"):
        ProgressStrip(tmp_path, GROUPS)
