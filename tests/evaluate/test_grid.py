"""Pictures of images in rows: every image where it belongs, what was forgotten marked, any text."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from pecker_fast.evaluate.grid import FORGET_COLOR, Block, PromptGroup, class_groups, plot_grid
from pecker_fast.evaluate.grid import plot_rows as plot

GROUPS = (
    PromptGroup("Forgotten: cat", ("a cat", "my cat"), forgotten=True),
    PromptGroup("Unrelated", ("a tree",)),
)


def flat(*levels, channels=3, side=8):
    """Images of one colour each, which no text has: levels in [0, 255] of red, no green."""
    images = torch.tensor(levels).float().div(255).view(-1, 1, 1, 1).repeat(1, channels, side, side)
    images[:, 1:2] = 0
    return images


def box(path, color):
    """(left, top, right, bottom) of what has a colour in a picture; None where nothing has."""
    rows, columns = np.nonzero((np.asarray(Image.open(path)) == color).all(-1))
    if len(rows) == 0:
        return None
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def places(path, *levels):
    """Level -> the box of its image."""
    return {level: box(path, (level, 0, level)) for level in levels}


RED = tuple(bytes.fromhex(FORGET_COLOR[1:]))


def test_every_image_is_where_its_prompt_and_column_are(tmp_path):
    before, after = (flat(*range(first, first + 60, 10)) for first in (10, 110))
    blocks = [Block("Before", torch.split(before, 2)), Block("After", torch.split(after, 2))]
    plot(tmp_path / "p.png", GROUPS, blocks)
    place = places(tmp_path / "p.png", *range(10, 70, 10), *range(110, 170, 10))
    # Two images of each of three prompts, left and right.
    columns = [[place[first + 20 * row][0] for row in range(3)] for first in (10, 20, 110, 120)]
    rows = [[place[20 * row + first][1] for first in (10, 20, 110, 120)] for row in range(3)]
    for lines in (columns, rows):
        assert all(len(set(line)) == 1 for line in lines)
        assert all(a[0] < b[0] for a, b in itertools.pairwise(lines))
    assert {(right - left, bottom - top) for left, top, right, bottom in place.values()} == {
        (88, 88)  # a whole multiple of 8
    }
    _, _, right, bottom = box(tmp_path / "p.png", RED)  # the heading and the frame below it
    assert place[140][2] < right and place[140][3] < bottom < place[50][1]


def test_a_row_a_class_with_its_own_images(tmp_path):
    images = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).view(-1, 1, 1, 1).repeat(1, 3, 8, 8)
    images[:, 1] = -1
    labels = torch.tensor([2, 0, 2, 0, 2])
    names = ("circle", "square", "star")
    plot_grid(tmp_path / "g.png", images, labels, names, "a title", forget=2, columns=2)
    place = places(tmp_path / "g.png", 64, 128, 191)
    assert place[64][1] == place[191][1] < place[128][1]
    assert box(tmp_path / "g.png", (255, 0, 255)) is None  # only two columns
    left, top, _, bottom = box(tmp_path / "g.png", RED)
    assert left < place[128][0] and top < place[128][1] and bottom > place[128][3]
    assert top >= place[64][3]
    plot_grid(tmp_path / "g.png", images, labels, names, "a title")
    assert box(tmp_path / "g.png", RED) is None


def test_notes_stand_beside_their_rows(tmp_path):
    images, pictures = torch.split(flat(1, 2, 3), 1), []
    for notes in (("9 %", "8 %", "7 %"), ("9 %", "", "7 %")):
        plot(tmp_path / "p.png", class_groups(("a", "b", "c"), 1), [Block("", images, notes)])
        pictures.append(np.asarray(Image.open(tmp_path / "p.png")).astype(int))
    rows, columns, _ = np.nonzero(pictures[0] - pictures[1])
    _, top, right, bottom = box(tmp_path / "p.png", (2, 0, 2))
    assert columns.min() > right and top < rows.min() < rows.max() < bottom


def test_small_images_keep_their_pixels_and_large_ones_are_reduced(tmp_path):
    for side, shown in ((8, 88), (512, 160)):
        image = flat(0, side=side)
        image[..., side // 2 :] = 1
        plot(tmp_path / "p.png", [PromptGroup("", ("x",))], [Block("", [image])])
        colors = Image.open(tmp_path / "p.png").crop((80, 30, 200, 40)).getcolors()
        assert side == 512 or len(colors) == 2  # nothing between black and white
        assert Image.open(tmp_path / "p.png").size[1] == pytest.approx(shown + 40, abs=12)


@pytest.mark.parametrize(
    "prompt", ["$a_{b$", "猫の写真", "line\nbreak\ttab", "", "\U0001f408 <b>&", "x" * 700]
)
def test_any_text_is_a_prompt_or_a_title(tmp_path, prompt):
    groups = [PromptGroup(prompt, (prompt,))]
    plot(tmp_path / "p.png", groups, [Block(prompt, [flat(1)])])
    left, top, _, _ = box(tmp_path / "p.png", (1, 0, 1))
    assert 40 < left < 700 and top < 300


def test_a_diverged_network_is_drawn_black(tmp_path):
    images = flat(100, 101, 102)
    images[0] = torch.nan
    plot(tmp_path / "p.png", GROUPS, [Block("", torch.split(images, 1))])
    place = places(tmp_path / "p.png", 101, 102)
    at = place[101][0] + 44, 2 * place[101][1] - place[102][1] + 44
    black = Image.open(tmp_path / "p.png").crop((at[0] - 5, 0, at[0] + 5, place[101][1] - 5))
    assert (0, 0, 0) in {color for _, color in black.getcolors(10**6)}
