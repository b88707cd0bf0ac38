"""Packages that only a part of this one needs, and what to say where one is missing.

Which extra brings which package stands in pyproject.toml and is read from the installed metadata.
Code imports such a package as any other; the command line turns the `ModuleNotFoundError` into a
line.
"""

from __future__ import annotations

import re
from importlib import metadata

__all__ = ["missing_package"]

_EXTRAS = ("erase", "evaluate", "tensorboard", "triton")  # the first that has a package brings it
_DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}  # where it is not the module's own name


def missing_package(error: ModuleNotFoundError) -> str | None:
    """The line for a package that is not installed.

    Args:
        error: What an import raised.

    Returns:
        The package and what to install; None where no extra of this package brings it.
    """
    module = (error.name or "").partition(".")[0]
    wanted = _DISTRIBUTIONS.get(module, module).replace("_", "-").lower()
    for extra in _EXTRAS:
        if wanted in _packages(extra):
            return f"needs {wanted}, which is not installed: pip install 'pecker-fast[{extra}]'"
    return None


def _packages(extra: str) -> set[str]:
    try:
        requirements = metadata.requires("pecker-fast") or []
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return set()
    condition = re.compile(rf"extra == [\"']{extra}[\"']")
    return {
        name[0].replace("_", "-").lower()
        for requirement in requirements
        if condition.search(requirement) and (name := re.match(r"[\w.-]+", requirement))
    }
