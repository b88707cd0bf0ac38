"""What comes in as YAML or JSON: read within limits, and checked by a schema.

Of YAML only what JSON has as well: objects, lists, texts, numbers, true, false and null; and
aliases while what they stand for is small: some hundred bytes of them could be a list of billions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pecker_fast.errors import PeckerError
from pecker_fast.files import MOST_DIGITS, MOST_LEVELS, check_extent, few, read_text, shown

__all__ = ["Name", "Names", "Schema", "checked", "parse_yaml", "read_yaml"]

S = TypeVar("S", bound="Schema")
_MOST_BYTES = 1 << 20
_TAG = "tag:yaml.org,2002:"


class Schema(BaseModel):
    """What a file from elsewhere may hold: exact types, finite numbers, no entry but these."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"a name holds characters that cannot be printed: {shown(text)}")
    return text


Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Names: TypeAlias = Annotated[list[Name], Field(max_length=100_000)]
"""Of classes, by label."""


def checked(schema: type[S], content: Any, source: object) -> S:
    """What a file holds, once it fits a schema.

    Raises:
        PeckerError: it does not fit; the first wrong entry is named, with what stands there.
    """
    if not isinstance(content, dict):
        raise PeckerError(
            f"{source}: expected an object with entries such as {few(schema.model_fields)}, got "
            f"{shown(content)}"
        )
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key, found = ".".join(map(str, first["loc"])), shown(first["input"])
    if first["type"] == "extra_forbidden":
        known = few(schema.model_fields, limit=10)
        raise PeckerError(f"{source}: unknown entry {shown(key)}; known are {known}")
    if first["type"] == "missing":
        raise PeckerError(f"{source}: {shown(key)} is missing")
    if first["type"] == "value_error":  # a validator of the schema's own says all there is to say
        raise PeckerError(f"{source}: {first['msg'].removeprefix('Value error, ')}")
    wanted = first["msg"].replace("Input should be", "must be", 1)
    raise PeckerError(f"{source}: {shown(key)} {wanted}, got {found}")


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as `parse_yaml` reads it.

    Raises:
        PeckerError: see `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, _MOST_BYTES), str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Objects, lists, texts, numbers and None that a YAML text stands for.

    Raises:
        PeckerError: not YAML, a tag that JSON has not, a merge key, nested deeper than
            `MOST_LEVELS`, more than `MOST_ENTRIES` entries, or a number of more than `MOST_DIGITS`
            digits.
    """
    try:
        content = yaml.load(text, _Loader)
        check_extent(content)
        return content
    except RecursionError:
        reason = f"nested deeper than {MOST_LEVELS} levels"
    except (yaml.YAMLError, ValueError, KeyError) as error:  # the others are of tags: !!int x
        reason = " ".join(str(error).split())
    raise PeckerError(f"{source}: not valid YAML ({reason[:300]})")


class _Loader(yaml.SafeLoader):
    def flatten_mapping(self, node: Any) -> None:
        if any(key.tag == f"{_TAG}merge" for key, _ in node.value):
            raise yaml.YAMLError("merge keys (<<) are not read; write out what is meant")

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > MOST_DIGITS:
            raise yaml.YAMLError(f"a number of {len(node.value)} digits")
        return int(super().construct_yaml_int(node))


_Loader.yaml_constructors = {
    None: yaml.SafeLoader.construct_undefined,
    f"{_TAG}int": _Loader.construct_yaml_int,
    **{
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (f"{_TAG}{name}" for name in ("null", "bool", "float", "str", "seq", "map"))
    },
}
