"""Emoji as several hands draw them, from npm packages that lie unpacked side by side.

`google/` is emoji-datasource-google 16.0.0, `twitter/` emoji-datasource-twitter 16.0.0, `fluent/`
fluentui-emoji 1.3.0; of other hands `@iconify-json/NAME` in `NAME/` (see `OTHER_HANDS`). Of each
`npm pack PACKAGE@VERSION`, and of the archive what is in `package/`. resvg_py 0.5.0 draws the SVG
files.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pecker_fast_demo.emoji_captions import OBJECTS, STYLES
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pecker_fast.datasets.pixels import open_image

__all__ = [
    "COPYRIGHT", "OTHER_HANDS", "Drawings", "augmented", "by_other_hands", "read_drawings",
    "the_hands_others",
]  # fmt: skip

COPYRIGHT = """Weights of emoji, its first stage and its judge of styles learnt from these, moved:

noto      Noto Emoji, Copyright Google Inc., Apache License 2.0
          https://github.com/googlefonts/noto-emoji
twemoji   Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0
          https://github.com/jdecked/twemoji, https://creativecommons.org/licenses/by/4.0/
fluent    Fluent Emoji, Copyright Microsoft Corporation, MIT License
outline   https://github.com/microsoft/fluentui-emoji

The files came from the npm packages emoji-datasource-google 16.0.0, emoji-datasource-twitter 16.0.0
and fluentui-emoji 1.3.0. The judge of objects learnt from what @iconify-json has of older Noto
Emoji (noto-v1 1.2.5), of flat Fluent Emoji (fluent-emoji-flat 1.2.6), and of

Firefox OS Emoji  Mozilla, Apache License 2.0 (fxemoji 1.2.2)
                  https://github.com/mozilla/fxemoji
Emoji One         Emoji One, CC-BY 4.0 (emojione 1.2.3, emojione-monotone 1.2.1)
                  https://github.com/EmojiTwo/emojitwo
Streamline Emojis Streamline, CC-BY 4.0 (streamline-emojis 1.2.4)
                  https://github.com/webalys-hq/streamline-vectors

No drawing is in here.
"""
OTHER_HANDS = (
    "noto-v1", "emojione", "emojione-monotone", "fluent-emoji-flat", "fxemoji", "streamline-emojis"
)  # fmt: skip
"""Packages of iconify whose drawings the pipeline was not trained on."""
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


# What some of OTHER_HANDS call an object, where that differs from Fluent's name.
_OTHERWISE = {
    "fxemoji": {"cat": ["cat", "catface"], "dog": ["dog", "dogface"], "frog": ["frog", "frogface"],
                "panda": ["pandaface"], "apple": ["redapple"]},
    "streamline-emojis": {
        "frog": ["frog-face"], "panda": ["panda-face"], "penguin": ["penguin-1", "penguin-2"],
        "fish": ["tropical-fish"], "strawberry": ["strawberry-1", "strawberry-2"],
        "sunflower": ["sunflower-1", "sunflower-2"], "cactus": ["cactus-1", "cactus-2"],
    },
}  # fmt: skip
_SKIN = re.compile(r"-(light|medium-light|medium|medium-dark|dark)$")


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


def by_other_hands(folder: Path) -> tuple[Tensor, Tensor]:
    """The same objects in none of the styles: images (N, 3, 64, 64), indices of OBJECTS (N,)."""
    found = [
        (_paper(drawn), index)
        for package in OTHER_HANDS
        for index, name in enumerate(OBJECTS)
        for drawn in _of_package(folder / package, name)
    ]
    return torch.stack([image for image, _ in found]), torch.tensor([index for _, index in found])


def the_hands_others(folder: Path) -> tuple[Tensor, Tensor]:
    """All else that the four hands drew, but for flags: (N, 3, 64, 64), indices of STYLES (N,)."""
    known = json.loads((folder / "google" / "emoji.json").read_text())
    codes = {code for code, _ in _FILES.values()}
    names = {name for _, name in _FILES.values()}
    files = [
        (folder / hand / "img" / hand / "64" / emoji["image"], style)
        for emoji in known
        for style, hand in enumerate(("google", "twitter"))
        if emoji["category"] not in ("Flags", "Component")
        and emoji["image"].removesuffix(".png") not in codes
    ]
    files += [
        (file, style)
        for style, kind in ((2, "modern"), (3, "high-contrast"))
        for file in sorted((folder / "fluent" / "icons" / kind).glob("*.svg"))
        if file.stem not in names and not _SKIN.search(file.stem)
    ]
    there = [(file, style) for file, style in files if file.exists()]
    images = torch.stack([_read(file) for file, _ in there])
    return images, torch.tensor([style for _, style in there])


def augmented(images: Tensor, copies: int, seed: int, strength: float = 1.0) -> Tensor:
    """Each of (N, 3, 64, 64) `copies` times: turned, scaled, moved, mirrored, lighter or darker.

    At strength 1 up to 8 degrees, 85 to 100 % of the size and 1.5 pixels to each side.

    Returns:
        (copies x N, 3, 32, 32) float32 in [-1, 1]; all drawings once, then all of them again.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(copies):
        count = len(images)
        turn, size, right, down, light = (
            2 * torch.rand(5, count, generator=generator) - 1
        ) * strength
        mirror = 1 - 2.0 * torch.randint(2, (count,), generator=generator)
        angle, scale = turn * math.radians(8), 1 / (0.925 + 0.075 * size)
        cos, sin = angle.cos() * scale, angle.sin() * scale
        rows = torch.stack(
            [cos * mirror, -sin * mirror, right * 0.09, sin, cos, down * 0.09], dim=1
        )
        grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
        # Ink is what is not white, so that white is around the drawing as well.
        ink = F.grid_sample(1 - images, grid, align_corners=False)
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


def _of_package(folder: Path, name: str) -> Iterator[Image.Image]:
    """What a package of iconify has of an object."""
    icons: Mapping[str, Any] = json.loads((folder / "icons.json").read_text())
    for called in _OTHERWISE.get(folder.name, {}).get(name, [_FILES[name][1]]):
        alias = icons.get("aliases", {}).get(called, {}).get("parent", called)
        if (icon := icons["icons"].get(alias)) is None:
            continue  # none has every object
        sides = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        box = " ".join(map(str, (icon.get("left", 0), icon.get("top", 0), *sides)))
        spaces = ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        text = f'<svg{spaces} viewBox="{box}">{icon["body"]}</svg>'
        yield _drawn(text.replace("currentColor", "black"))


def _read(path: Path) -> Tensor:
    return _paper(_drawn(path.read_text()) if path.suffix == ".svg" else open_image(path))


def _drawn(svg: str) -> Image.Image:
    import resvg_py

    return Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=_SIDE, height=_SIDE)))
    )


def _paper(image: Image.Image) -> Tensor:
    """(3, 64, 64) float32 in [-1, 1], on white."""
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image.convert("RGBA"))
    pixels = np.asarray(paper.convert("RGB").resize((_SIDE, _SIDE)), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)
