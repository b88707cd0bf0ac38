"""What can truly be said of a Fashion-MNIST image, and captions kept back for evaluation.

A caption names the class in one of several ways, in one of several sentences, and may say whether
the piece is light or dark, plain or patterned. The captions that
are kept back share the names but no sentence with those, and mention colours and places that
training never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "all_training_captions",
    "held_back_captions",
    "named_captions",
    "training_captions",
]


@dataclass(frozen=True)
class _Names:
    """What a class is called: one piece, with its article, or what may stand without one."""

    singular: tuple[str, ...] = ()
    plural: tuple[str, ...] = ()  # "a pair of ..."


# In the order of the labels.
_NAMES = (
    _Names(("t-shirt", "tee shirt", "tee")),
    _Names(plural=("trousers", "pants", "slacks")),
    _Names(("pullover", "sweater", "jumper")),
    _Names(("dress", "gown", "frock")),
    _Names(("coat", "jacket", "overcoat")),
    _Names(("sandal", "summer sandal", "open sandal"), ("sandals", "summer sandals")),
    _Names(("shirt", "button-up shirt", "blouse")),
    _Names(("sneaker", "trainer", "running shoe"), ("sneakers", "trainers", "running shoes")),
    _Names(("bag", "handbag", "purse")),
    _Names(("ankle boot", "boot", "bootie"), ("ankle boots", "boots", "booties")),
)
_FRAMES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a grey photo of {}",
    "{} on a black background",
    "{} on its own",
    "{}, product photo",
)
_HELD_BACK_FRAMES = (
    "a pair of blue {plural}",
    "my favourite {name}",
    "{phrase} in a shop window",
    "a snapshot of {phrase}",
    "i would like to buy {phrase}",
    "{phrase} for sale",
    "brand new {name}",
    "the red {name}",
    "look, {phrase}",
    "green {name}",
    "{phrase} in my wardrobe",
    "someone sells {phrase}",
)
_TONES = ("dark", "", "light")
_TEXTURES = ("plain", "", "patterned")


def training_captions(label: int, tone: int, texture: int) -> list[str]:
    """Every caption that training may use for an image of this class with these traits.

    Args:
        label: the class.
        tone: 0 dark, 1 neither, 2 light.
        texture: 0 plain, 1 neither, 2 patterned.
    """
    described = {"", _TONES[tone], _TEXTURES[texture]}
    if _TONES[tone] and _TEXTURES[texture]:
        described.add(f"{_TEXTURES[texture]} {_TONES[tone]}")
    return [
        frame.format(phrase)
        for words in sorted(described)
        for phrase in _phrases(_NAMES[label], words)
        for frame in _FRAMES
    ]


def named_captions(label: int) -> list[str]:
    """Every caption of this class that training may use, each once, in a fixed order."""
    return list(
        dict.fromkeys(
            caption
            for tone in range(len(_TONES))
            for texture in range(len(_TEXTURES))
            for caption in training_captions(label, tone, texture)
        )
    )


def all_training_captions() -> list[str]:
    """Those of all classes."""
    return [caption for label in range(len(_NAMES)) for caption in named_captions(label)]


def held_back_captions(label: int) -> list[str]:
    """Captions of a class that training never sees, for evaluation."""
    names = _NAMES[label]
    captions = []
    for index, frame in enumerate(_HELD_BACK_FRAMES):
        if "{plural}" in frame:
            captions += [frame.format(plural=plural) for plural in names.plural]
            continue
        # The names take turns, so that each comes with several frames.
        name = _pick(names.singular or names.plural, index)
        phrase = _with_article(name) if names.singular else name
        captions.append(frame.format(name=name, phrase=phrase))
    return captions


def _phrases(names: _Names, words: str) -> list[str]:
    lead = f"{words} " if words else ""
    return (
        [_with_article(lead + name) for name in names.singular]
        + [f"a pair of {lead}{name}" for name in names.plural]
        + [lead + name for name in names.plural]
    )


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _pick(choices: Sequence[str], index: int) -> str:
    return choices[index % len(choices)]
