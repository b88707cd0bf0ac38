"""Models to try pecker_fast on, with their first stages and judges, and the demo itself.

`teacher/` is a model folder (see `pecker_fast.models.folder`) with two more parts: `classifier/`,
which judges the samples, and `statistics.safetensors`, the classifier's features of real images.
`make/make_teacher.py` beside this package makes all three, and says how these were made.
`retrained.json` is what `pecker-fast attack --json` found of a model that the recipe
`fashion_retrain` trained without ankle boots.

`first_stage/` is the teacher distilled into one step, for erasures to start from: the generator as
`model/`, and what knows its scores as `pseudo_score/`. The recipe `demo_first_stage` made it.

`dit/` is a DiT that learnt the same images by flow matching, in half precision, judged by the same
classifier. `make_dit.py` made it by the recipe `fashion_dit`. `dit_first_stage/` is its first
stage, in half precision too, by `make_first_stage.py`.

`emoji/` is a pipeline in colour, of 24 objects that are drawn in 4 styles; `emoji_judges/` has a
classifier of objects and one of styles, by other drawings. `make_emoji.py` and
`make_emoji_judges.py` made them; `emoji/NOTICE` says whose drawings they learnt from.
`emoji_first_stage/` is the first stage, by the recipe `demo_emoji_first_stage`.

The others learnt from Fashion-MNIST (Zalando SE, MIT licence); no image of it is in here.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "dit_first_stage_folder",
    "dit_folder",
    "emoji_first_stage_folder",
    "emoji_folder",
    "emoji_judges_folder",
    "first_stage_folder",
    "teacher_folder",
]


def teacher_folder() -> Path:
    """The folder of the shipped Fashion-MNIST teacher."""
    return Path(__file__).parent / "teacher"


def dit_folder() -> Path:
    """The folder of the shipped DiT, a rectified flow of Fashion-MNIST."""
    return Path(__file__).parent / "dit"


def dit_first_stage_folder() -> Path:
    """The folder of the first stage of the shipped DiT, for `erase --from`."""
    return Path(__file__).parent / "dit_first_stage"


def first_stage_folder() -> Path:
    """The folder of the shipped first stage of the teacher, for `erase --from`."""
    return Path(__file__).parent / "first_stage"


def emoji_folder() -> Path:
    """The folder of the shipped pipeline that draws emoji."""
    return Path(__file__).parent / "emoji"


def emoji_first_stage_folder() -> Path:
    """The folder of the first stage of that pipeline, for `erase --pipeline --from`."""
    return Path(__file__).parent / "emoji_first_stage"


def emoji_judges_folder() -> Path:
    """The folder with the classifiers of its images: `object/` and `style/`."""
    return Path(__file__).parent / "emoji_judges"
