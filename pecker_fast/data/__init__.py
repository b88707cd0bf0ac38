"""What ships inside the package: the demo's teacher, its classifier and feature statistics.

`teacher/` is a model folder (see `pecker_fast.models.folder`) with two more parts: `classifier/`,
which judges the samples, and `statistics.safetensors`, the classifier's features of real images.
`pecker-fast train-teacher` made all three.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["teacher_folder"]


def teacher_folder() -> Path:
    """The folder of the shipped Fashion-MNIST teacher."""
    return Path(__file__).parent / "teacher"
