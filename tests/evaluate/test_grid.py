"""The pictures: which images they show, in which row, and that they are whole PNG files."""

import numpy as np
import pytest
import torch
from PIL import Image

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate import grid
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.grid import plot_accuracy, plot_before_after, plot_grid

NAMES = ("circle", "square", "star")


def flat_images(values, channels=1):
    """One image of a single grey per value in [-1, 1]."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, channels, 8, 8)


def greys(path):
    """Grey values that fill a large area of the picture, other than white."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    grey = pixels[(pixels == pixels[:, :1]).all(axis=1)][:, 0]
    values, counts = np.unique(grey, return_counts=True)
    return {int(value) for value in values[counts > 1500] if value < 250}


def test_each_image_is_shown_with_its_own_pixels(tmp_path):
    # 0.0 -> 127 or 128, and so on: matplotlib rounds as it likes, so allow one level.
    values = [-1.0, -0.5, 0.0, 0.5]
    plot_grid(tmp_path / "g.png", flat_images(values), torch.tensor([0, 1, 2, 0]), NAMES, "t")
    found = greys(tmp_path / "g.png")
    for value in values:
        assert any(abs(shown - (value + 1) * 127.5) <= 1 for shown in found), (value, found)
    assert len(found) == 4


def test_classes_without_images_get_no_row(tmp_path):
    images = flat_images([0.0, 0.0])
    plot_grid(tmp_path / "two.png", images, torch.tensor([0, 2]), NAMES, "t")
    plot_grid(tmp_path / "one.png", images, torch.tensor([2, 2]), NAMES, "t")
    heights = [Image.open(tmp_path / f"{name}.png").size[1] for name in ("two", "one")]
    assert heights[0] > heights[1]


def test_only_so_many_columns(tmp_path):
    images = flat_images([-1.0, 0.0, 0.5])
    plot_grid(tmp_path / "g.png", images, torch.tensor([1, 1, 1]), NAMES, "t", columns=2)
    assert len(greys(tmp_path / "g.png")) == 2


def test_the_forgotten_row_is_marked(tmp_path):
    arguments = (flat_images([0.0, 0.0]), torch.tensor([0, 1]), NAMES, "t")
    for name, forget in (("marked", 1), ("plain", None)):
        plot_grid(tmp_path / f"{name}.png", *arguments, forget=forget)
    reds = []
    for name in ("marked", "plain"):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        reds.append(int(((pixels[..., 0] > 150) & (pixels[..., 1] < 80)).sum()))
    assert reds[0] > 300 and reds[1] == 0


def test_colour_images(tmp_path):
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    plot_grid(tmp_path / "g.png", red, torch.tensor([0]), NAMES, "t")
    pixels = np.asarray(Image.open(tmp_path / "g.png").convert("RGB")).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(axis=1).sum() > 1500


def test_before_and_after_side_by_side(tmp_path):
    labels = torch.tensor([0, 1, 2])
    before, after = flat_images([-1.0, -0.8, -0.6]), flat_images([0.2, 0.4, 0.6])
    shares = ((0.9, None, 1.0), (0.9, 0.8, 0.0))
    plot_before_after(
        tmp_path / "p.png", before, after, labels, NAMES, 2, ("before", "after"), shares
    )
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("L")).astype(int)
    dark = np.argwhere(abs(pixels - 25) <= 1)[:, 1]  # -0.8, on the left
    light = np.argwhere(abs(pixels - 178) <= 1)[:, 1]  # 0.4, on the right
    assert len(dark) > 1500 and len(light) > 1500 and np.median(dark) < np.median(light)
    assert len(greys(tmp_path / "p.png")) == 6


def test_accuracy_plot(tmp_path):
    points = [CurvePoint(0, 0.9, 0.5), CurvePoint(10, 0.0, 0.9)]
    plot_accuracy(tmp_path / "a.png", points, "star", 0.97, 0.93)
    plot_accuracy(tmp_path / "b.png", points[:1], "star", None, None)
    for name in ("a", "b"):
        image = Image.open(tmp_path / f"{name}.png")
        image.load()
        assert min(image.size) > 300
    with pytest.raises(PeckerError, match="no measured point"):
        plot_accuracy(tmp_path / "c.png", [], "star", None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_legend_says_how_the_images_of_each_line_were_drawn(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(grid, "save_figure", lambda figure, path: figures.append(figure))
    points = [CurvePoint(0, 0.9, 0.5), CurvePoint(10, 0.0, 0.8)]
    drawn = {"teacher_label": "teacher, 50 steps", "label": "20 steps"}
    plot_accuracy(tmp_path / "a.png", points, "star", 0.97, 0.93, **drawn)
    handles, labels = figures[0].axes[0].get_legend_handles_labels()
    shown = dict(zip(labels, (list(line.get_ydata()) for line in handles), strict=True))
    assert shown == {
        "other classes: teacher, 50 steps": [0.93, 0.93],
        "other classes: 20 steps": [0.5, 0.8],
        "star: teacher, 50 steps": [0.97, 0.97],
        "star: 20 steps": [0.9, 0.0],
    }


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 4, 8, 8), [0, 1], "must be"),
        (torch.zeros(2, 1, 8, 8), [0], "2 images for 1 labels"),
        (torch.zeros(0, 1, 8, 8), [], "0 images"),
    ],
)
def test_bad_input(tmp_path, images, labels, message):
    with pytest.raises(PeckerError, match=message):
        plot_grid(tmp_path / "g.png", images, torch.tensor(labels), NAMES, "t")
