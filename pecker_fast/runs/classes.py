"""The one place where the name of a class becomes its index."""

from __future__ import annotations

from collections.abc import Sequence

from pecker_fast.errors import PeckerError
from pecker_fast.files import shown

__all__ = ["class_index"]


def class_index(name: str | int, class_names: Sequence[str], whose: str) -> int:
    """The index of a class that is given by its name (case does not matter) or by its index.

    Args:
        name: A text that is the name of a class means that class, even if it is a number as well.
        class_names: One for each index.
        whose: Who has these classes, for the message.

    Raises:
        PeckerError: No such class; the message lists the first that there are, and says how
            classes get names where they have none.

    Example:
        >>> class_index("Dog", ["cat", "dog"], "the model"), class_index("0", ["cat"], "the model")
        (1, 0)
    """
    index = name
    if isinstance(name, str):
        wanted, known = name.strip().lower(), [each.lower() for each in class_names]
        if wanted in known:
            index = known.index(wanted)
        else:
            index = int(wanted) if wanted.isdecimal() and len(wanted) < 10 else -1
    if not isinstance(index, int) or not 0 <= index < len(class_names):
        listed = ", ".join(f"{number} {each!r}" for number, each in enumerate(class_names[:20]))
        more = f" and {len(class_names) - 20} more" if len(class_names) > 20 else ""
        unnamed = all(each == f"class {number}" for number, each in enumerate(class_names))
        remedy = (
            '; give a number, or names: {"class_names": ["cat", ...]}, one for each label, in '
            "pecker_fast.json in the model's folder"
        )
        raise PeckerError(
            f"unknown class {shown(name)}; the classes of {whose} are: {listed}{more}"
            + (remedy if unnamed else "")
        )
    return int(index)
