"""How the kinds write down their cases."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bad_input.case import Case, Change
from bad_input.spoil import ANY_FILE, JSON_FILE, Spoil, edit, values

__all__ = ["OUTPUT", "case", "each", "keys", "whole_json"]

OUTPUT = {
    "sample": ("x.png",),
    "erase": ("run",),
    "mask": ("m.safetensors", "m.png"),
    "evaluate": ("found.json", "drawn"),
    "patch": ("patched",),
    "compare": ("page",),
    "convert": ("converted",),
    "train-teacher": ("run",),
    "train-classifier": ("run",),
    "demo": ("run",),
}
"""What the command lines of `seeds` write where they succeed."""


def case(
    id: str,
    arguments: Sequence[str],
    needs: Sequence[str] = (),
    change: Change | None = None,
    *,
    named: str = "",
    code: int | tuple[int, ...] = 2,
    **more: Any,
) -> Case:
    """A case; one that may succeed may write what its command writes."""
    succeeds = code == 0 or (isinstance(code, tuple) and 0 in code)
    more.setdefault("writes", OUTPUT.get(arguments[0], ()) if succeeds else ())
    return Case(id, arguments, needs, change, named.split(), code, **more)


def each(
    prefix: str,
    table: Mapping[str, Spoil],
    file: str,
    arguments: Sequence[str],
    needs: Sequence[str],
    *,
    named: str = "",
    fine: Collection[str] = (),
    leave_out: Collection[str] = (),
    code: int | tuple[int, ...] = 2,
    **more: Any,
) -> list[Case]:
    """One case for each change of a table, made to a file; those in `fine` do no harm.

    A prefix of "unet" gives the case "unet: half".
    """

    def change(spoil: Spoil, folder: Path) -> None:
        spoil(folder / file)

    return [
        case(
            f"{prefix}: {name}",
            arguments,
            needs,
            partial(change, spoil),
            named="" if name in fine else named,
            code=0 if name in fine else code,
            **more,
        )
        for name, spoil in table.items()
        if name not in leave_out
    ]


def keys(
    prefix: str,
    file: str,
    table: Mapping[str, str],
    arguments: Sequence[str],
    needs: Sequence[str],
    *,
    fine: Collection[str] = (),
    **more: Any,
) -> list[Case]:
    """One case for each value (names of `spoil.VALUES`) of each dotted key of a JSON file.

    Those in `fine`, as "key=value", do no harm.
    """
    spoils = {
        f"{key}={word}": partial(edit, key=key, value=value)
        for key, words in table.items()
        for word, value in values(words).items()
    }
    return each(prefix, spoils, file, arguments, needs, fine=fine, **more)


def whole_json(
    prefix: str,
    file: str,
    arguments: Sequence[str],
    needs: Sequence[str],
    **more: Any,
) -> list[Case]:
    """All changes of a JSON file as a whole; it ends in a line end, which it need not have."""
    table = {**ANY_FILE, **JSON_FILE}
    del table["nearly-whole"]
    return each(prefix, table, file, arguments, needs, **more)
