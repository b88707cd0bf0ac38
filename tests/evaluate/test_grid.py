"""Pictures of images in rows: every image where it belongs, what was forgotten marked, any text."""

import itertools
import warnings

import pytest
import torch
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from pecker_fast.evaluate.drawing import FORGET_COLOR, picture
from pecker_fast.evaluate.grid import (
    Block,
    PromptGroup,
    class_groups,
    plot_before_after,
    plot_grid,
    plot_rows,
)

GROUPS = (
    PromptGroup("Forgotten: cat", ("a cat", "my cat"), forgotten=True),
    PromptGroup("Unrelated", ("a tree",)),
)
NAMES = ("circle", "square", "star")


def flat(*levels, channels=3, side=8):
    """Images of one grey each, levels in [0, 255]."""
    return torch.tensor(levels).float().div(255).view(-1, 1, 1, 1).expand(-1, channels, side, side)


def shown(figure):
    """Level -> (left, top) of its image, in inches."""
    found = {}
    for image in figure.axes[0].images:
        level = round(255 * float(image.get_array()[0, 0, 0]))
        left, _, _, top = image.get_extent()
        found[level] = (round(left, 3), round(top, 3))
    return found


def frames(figure):
    """(left, top, right, bottom) of every frame."""
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [(b.get_x(), b.get_y(), b.get_x() + b.get_width(), b.get_y() + b.get_height())
            for b in boxes]  # fmt: skip


def texts(figure):
    return {text.get_text(): text for text in figure.axes[0].texts}


def test_every_image_is_where_its_prompt_and_column_are(tmp_path, figures):
    before, after = (flat(*range(first, first + 60, 10), channels=1) for first in (10, 110))
    plot_before_after(tmp_path / "p.png", GROUPS, before, after)
    place = shown(figures[0])
    # Two images of each of three prompts, left and right.
    columns = [[place[first + 20 * row][0] for row in range(3)] for first in (10, 20, 110, 120)]
    rows = [[place[20 * row + first][1] for first in (10, 20, 110, 120)] for row in range(3)]
    for lines in (columns, rows):
        assert all(len(set(line)) == 1 for line in lines)
        assert all(a[0] < b[0] for a, b in itertools.pairwise(lines))
    (left, right) = frames(figures[0])
    for box, (first, last) in ((left, (10, 40)), (right, (110, 140))):
        assert box[0] < place[first][0] and box[1] < place[first][1]
        assert place[last][0] < box[2] and place[last][1] < box[3] < place[first + 40][1]
    assert min(Image.open(tmp_path / "p.png").size) > 300


def test_a_row_a_class_with_its_own_images(tmp_path, figures):
    images = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    labels = torch.tensor([2, 0, 2, 0, 2])
    plot_grid(tmp_path / "g.png", images, labels, NAMES, "a title", forget=2, columns=2)
    place = shown(figures[0])
    assert sorted(place) == [0, 64, 128, 191]  # only two columns
    assert place[64][1] == place[191][1] < place[0][1] == place[128][1]
    found = texts(figures[0])
    assert {"circle", "star", "a title"} <= found.keys() and "square" not in found
    assert found["star"].get_color() == FORGET_COLOR != found["circle"].get_color()
    assert len(frames(figures[0])) == 1
    plot_grid(tmp_path / "g.png", images, labels, NAMES, "a title")
    assert frames(figures[1]) == []


def test_notes_stand_beside_their_rows(tmp_path, figures):
    notes = (("9 %", "8 %", "7 %"), ("", "5 %", "0 %"))
    groups = class_groups(NAMES, 1)
    plot_before_after(tmp_path / "p.png", groups, flat(1, 2, 3), flat(4, 5, 6), notes=notes)
    place, found = shown(figures[0]), texts(figures[0])
    for note, name, level in (("9 %", "circle", 1), ("8 %", "square", 2), ("0 %", "star", 6)):
        assert found[note].get_position()[1] == found[name].get_position()[1]
        assert found[note].get_position()[0] > place[level][0]
    assert found["5 %"].get_color() == FORGET_COLOR


def test_small_images_keep_their_pixels_and_large_ones_are_reduced(tmp_path, figures):
    for side in (8, 512):
        plot_rows(tmp_path / "p.png", GROUPS, [Block.of("", flat(1, 2, 3, side=side), 3)])
    small, large = (figure.axes[0].images[0] for figure in figures)
    assert (small.get_interpolation(), large.get_interpolation()) == ("nearest", "hanning")


@pytest.mark.parametrize(
    "prompt", ["$a_{b$", "猫の写真", "line\nbreak\ttab", "", "\U0001f408 <b>&", "x" * 700]
)
def test_any_text_is_a_prompt_or_a_title(tmp_path, prompt, figures):
    groups = [PromptGroup(prompt, (prompt,))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_rows(tmp_path / "p.png", groups, [Block.of(prompt, flat(0), 1)])
    assert all(not text.get_parse_math() for text in figures[0].axes[0].texts)
    labels = [text for text in figures[0].axes[0].texts if text.get_ha() == "right"]
    assert all(label.get_text().count("\n") < 6 for label in labels)


@pytest.mark.parametrize("name", [r"$\frac$", "$a__b$", "$5 and $6"])
def test_any_name_at_an_axis_and_in_a_legend(tmp_path, name):
    with picture(tmp_path / "p.png", 3, 2) as figure:
        ax = figure.subplots()
        ax.plot([0, 1], label=name)
        ax.set(title=name, xlabel=name)
        ax.set_xticks([0, 1], [name, name])
        ax.legend()
    found = figure.findobj(Text)
    assert sum(text.get_text() == name for text in found) >= 4
    assert not any(text.get_parse_math() for text in found if name in text.get_text())


def test_a_diverged_network_is_drawn_black(tmp_path, figures):
    images = flat(100, 101, 102).clone()
    images[0] = torch.nan
    plot_rows(tmp_path / "p.png", GROUPS, [Block.of("", images, 3)])
    assert sorted(shown(figures[0])) == [0, 101, 102]
