"""The options that say which images a command reads, shared by all that read some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pecker_fast.cli.common import PATH
from pecker_fast.datasets import DATASETS

__all__ = ["data_options"]

F = TypeVar("F", bound=Callable[..., Any])


def data_options(function: F) -> F:
    """Add --dataset, --data-root and --download; the first two are None where not given.

    They are what `datasets.loading.load_images` takes.
    """
    for option in reversed(
        (
            click.option("--dataset", type=click.Choice(DATASETS), help="Images to read."),
            click.option(
                "--data-root",
                type=PATH,
                help="Folder that holds cifar-10-batches-py or stl10_binary; for fashion-mnist, "
                "its four files; for images, the folders train and test with a sub-folder per "
                "class, or train.npz and test.npz.",
            ),
            click.option(
                "--download",
                is_flag=True,
                help="Fetch CIFAR-10 or STL-10 if it is not in --data-root; else nothing is "
                "downloaded.",
            ),
        )
    ):
        function = option(function)
    return function
