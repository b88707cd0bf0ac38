"""diffusers' U-Net for class models without the hundred networks that are listed beside it.

`import diffusers.models.unets.unet_2d` runs the `__init__` of two packages. They import every
network there is, most of which import transformers: 2 of 8 seconds until the first iteration. Here
the packages are empty while `unet_2d` is imported, and transformers is not there; what loads it
later gets the whole packages, with the same classes in them.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from types import ModuleType

__all__ = ["load_class_networks"]

_PACKAGES = ("unets", "transformers")


def load_class_networks() -> None:
    """Load what a class model needs of diffusers; nothing where that is not to be had."""
    names = [f"diffusers.models.{package}" for package in _PACKAGES]
    if {"transformers", *names} & sys.modules.keys():
        return
    with suppress(Exception):  # another diffusers: it loads as it always does
        import diffusers.utils  # which looks for transformers

        for name, package in zip(names, _PACKAGES, strict=True):
            module = ModuleType(name)
            module.__path__ = [f"{diffusers.__path__[0]}/models/{package}"]
            sys.modules[name] = module
        sys.modules["transformers"] = None  # type: ignore[assignment]  # not to be imported
        import diffusers.models.unets.unet_2d
    for name in ("transformers", *names):
        sys.modules.pop(name, None)
