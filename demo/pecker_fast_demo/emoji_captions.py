"""What an emoji is called: objects drawn in several styles, and captions kept back for evaluation.

A caption names object and style, or one of them. The captions that are kept back share the names
but no sentence with those of training.
"""

from __future__ import annotations

__all__ = [
    "KINDS",
    "OBJECTS",
    "STYLES",
    "all_emoji_captions",
    "emoji_captions",
    "held_back_emoji_captions",
]

STYLES = ("noto", "twemoji", "fluent", "outline")
"""Google's and Twitter's drawings, Microsoft's in colour and in black and white."""

KINDS = {
    "animals": (
        "cat", "dog", "frog", "panda", "penguin", "fish", "octopus", "butterfly", "turtle", "snail"
    ),
    "fruit": ("apple", "banana", "strawberry", "grapes", "pineapple", "cherries"),
    "vehicles": ("car", "bus", "rocket", "airplane", "sailboat"),
    "plants": ("sunflower", "cactus", "mushroom"),
}  # fmt: skip
"""Objects by what they are like."""

OBJECTS = tuple(name for names in KINDS.values() for name in names)

_FRAMES = (
    "{phrase} in the {style} style",
    "{phrase}, {style}",
    "{style} {name}",
    "a {style} emoji of {phrase}",
    "an emoji of {phrase} in {style} style",
    "a picture of {phrase} in {style} style",
)
_WITHOUT_STYLE = ("{phrase}", "an emoji of {phrase}")
_WITHOUT_OBJECT = ("a {style} emoji", "an emoji in {style} style")
_HELD_BACK_FRAMES = (
    "my favourite {name} in {style}",
    "{phrase} the way {style} draws it",
    "a sticker of {phrase}, {style} style",
    "send me {phrase} from {style}",
    "the {style} version of {phrase}",
    "look, {phrase} drawn by {style}",
)


def emoji_captions(name: str, style: str) -> list[str]:
    """Every caption of both that training may use."""
    return _filled(_FRAMES, name, style)


def held_back_emoji_captions(name: str, style: str) -> list[str]:
    """Captions of both that training never sees."""
    return _filled(_HELD_BACK_FRAMES, name, style)


def all_emoji_captions(name: str, style: str) -> list[str]:
    """Those of training, and what names only one of both."""
    return _filled((*_FRAMES, *_WITHOUT_STYLE, *_WITHOUT_OBJECT), name, style)


def _filled(frames: tuple[str, ...], name: str, style: str) -> list[str]:
    article = "" if name in ("grapes", "cherries") else "an " if name[0] in "aeiou" else "a "
    return [frame.format(phrase=article + name, name=name, style=style) for frame in frames]
