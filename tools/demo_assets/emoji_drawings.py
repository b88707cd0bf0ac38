"""Emoji as several hands draw them, from npm packages that lie unpacked side by side.

`google/` is emoji-datasource-google 16.0.0, `twitter/` emoji-datasource-twitter 16.0.0, `fluent/`
fluentui-emoji 1.3.0: of each `npm pack PACKAGE@VERSION`, and of the archive what is in `package/`.
resvg_py 0.5.0 draws the SVG files.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pecker_fast.datasets.emoji_captions import OBJECTS, STYLES
from pecker_fast.datasets.pixels import open_image

__all__ = ["COPYRIGHT", "Drawings", "augmented", "read_drawings"]

COPYRIGHT = """Weights of emoji, its first stage and judges learnt from these drawings, moved:

noto      Noto Emoji, Copyright Google Inc., Apache License 2.0
          https://github.com/googlefonts/noto-emoji
twemoji   Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0
          https://github.com/jdecked/twemoji, https://creativecommons.org/licenses/by/4.0/
fluent    Fluent Emoji, Copyright Microsoft Corporation, MIT License
outline   https://github.com/microsoft/fluentui-emoji

The files came from the npm packages emoji-datasource-google 16.0.0, emoji-datasource-twitter 16.0.0
and fluentui-emoji 1.3.0. No drawing is in here.
"""
_SIDE = 64  # of a drawing; images have half of it
# Of each object: the file of Google and Twitter, and of Fluent.
_FILES = {
    "cat": ("1f431", "cat-face"), "dog": ("1f436", "dog-face"), "frog": ("1f438", "frog"),
    "panda": ("1f43c", "panda"), "penguin": ("1f427", "penguin"), "fish": ("1f41f", "fish"),
    "octopus": ("1f419", "octopus"), "butterfly": ("1f98b", "butterfly"),
    "turtle": ("1f422", "turtle"), "snail": ("1f40c", "snail"), "apple": ("1f34e", "red-apple"),
    "banana": ("1f34c", "banana"), "strawberry": ("1f353", "strawberry"),
    "grapes": ("1f347", "grapes"), "pineapple": ("1f34d", "pineapple"),
    "cherries": ("1f352", "cherries"), "car": ("1f697", "automobile"), "bus": ("1f68c", "bus"),
    "rocket": ("1f680", "rocket"), "airplane": ("2708-fe0f", "airplane"),
    "sailboat": ("26f5", "sailboat"), "sunflower": ("1f33b", "sunflower"),
    "cactus": ("1f335", "cactus"), "mushroom": ("1f344", "mushroom"),
}  # fmt: skip


@dataclass(frozen=True)
class Drawings:
    """N drawings on white."""

    images: Tensor  # (N, 3, 64, 64) float32 in [-1, 1]
    objects: Tensor  # (N,) int64 indices of OBJECTS
    styles: Tensor  # (N,) int64 indices of STYLES


def read_drawings(folder: Path) -> Drawings:
    """Every object in every style."""
    images = [_read(path) for name in OBJECTS for path in _paths(folder, *_FILES[name])]
    count, styles = len(OBJECTS), len(STYLES)
    return Drawings(
        torch.stack(images),
        torch.arange(count).repeat_interleave(styles),
        torch.arange(styles).repeat(count),
    )


def augmented(drawings: Drawings, copies: int, seed: int, strength: float = 1.0) -> Tensor:
    """Each drawing `copies` times: turned, scaled, moved, mirrored, lighter or darker.

    At strength 1 up to 8 degrees, 85 to 100 % of the size and 1.5 pixels to each side.

    Returns:
        (copies x N, 3, 32, 32) float32 in [-1, 1]; all drawings once, then all of them again.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(copies):
        count = len(drawings.images)
        turn, size, right, down, light = (
            2 * torch.rand(5, count, generator=generator) - 1
        ) * strength
        mirror = 1 - 2.0 * torch.randint(2, (count,), generator=generator)
        angle, scale = turn * math.radians(8), 1 / (0.925 + 0.075 * size)
        cos, sin = angle.cos() * scale, angle.sin() * scale
        rows = torch.stack(
            [cos * mirror, -sin * mirror, right * 0.09, sin, cos, down * 0.09], dim=1
        )
        grid = F.affine_grid(rows.view(-1, 2, 3), list(drawings.images.shape), align_corners=False)
        # Ink is what is not white, so that white is around the drawing as well.
        ink = F.grid_sample(1 - drawings.images, grid, align_corners=False)
        ink = ink * (1 + 0.05 * light.view(-1, 1, 1, 1))
        found.append((1 - F.avg_pool2d(ink, 2)).clamp(-1, 1))
    return torch.cat(found)


def _paths(folder: Path, code: str, name: str) -> list[Path]:
    """The file of each of STYLES."""
    return [
        *(folder / hand / "img" / hand / "64" / f"{code}.png" for hand in ("google", "twitter")),
        *(
            folder / "fluent" / "icons" / kind / f"{name}.svg"
            for kind in ("modern", "high-contrast")
        ),
    ]


def _read(path: Path) -> Tensor:
    if path.suffix == ".svg":
        import resvg_py

        drawn = resvg_py.svg_to_bytes(svg_string=path.read_text(), width=_SIDE, height=_SIDE)
        image = Image.open(io.BytesIO(bytes(drawn)))
    else:
        image = open_image(path)
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image.convert("RGBA"))
    pixels = np.asarray(paper.convert("RGB").resize((_SIDE, _SIDE)), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)
