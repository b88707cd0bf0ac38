"""What all configurations share: sections, YAML files and flags, and errors in one line."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from pecker_fast.errors import PeckerError
from pecker_fast.files import shown
from pecker_fast.runs.reading import read_yaml

__all__ = ["Section", "Settings", "apply_overrides", "build", "load", "read_settings", "recipes_in"]

S = TypeVar("S", bound="Settings")

GONE = {
    "antithetic": "time steps come in pairs t, T - 1 - t",
    "decoupled_decay": "Adam fine-tunes a classifier, AdamW trains one from scratch",
    "head_lr_factor": "it is 10 for a classifier that is fine-tuned, 1 from scratch",
    "network.image_size": "it is that of the images",
    "saliency.clip_grad_norm": "gradients of the saliency of methods are not clipped",
    "saliency.guidance": "it is 2, or 0 where the model has no label for no class",
    "saliency.reduction": "it is retain_aware for method redirect, abs_of_sum for the others",
    "split": "all images of STL-10 are trained on, as published, and training images of the others",
    "stem": "it is ImageNet's for a classifier that is fine-tuned, else that for small images",
}
"""Keys that there were, and what takes their place."""


class Section(BaseModel):
    """Immutable; an unknown key, an infinity or a NaN is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is expected: they would count as 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *typing.get_args(kind)):
            raise PydanticCustomError("truth", "must not be true or false")
        return value


class Settings(Section):
    """A whole configuration, made of values and sections."""

    def check_resumes(self, saved: Mapping[str, Any], iteration: int, where: str) -> None:
        """Refuse to resume a run under settings that would change its results.

        Logging may change, and so may the number of iterations as long as the learning rate does
        not depend on it.

        Raises:
            PeckerError: A setting differs; its key and both values are named.
        """
        ours = self.flat()
        for key in [*ours, *(key for key in saved if key not in ours)]:
            free = key.startswith("logging.") or (
                key == "iterations" and ours.get("lr_schedule") == "constant"
            )
            if not free and ours.get(key) != saved.get(key):
                raise PeckerError(
                    f"{where} holds a run with {key} {shown(saved.get(key))}, this one has "
                    f"{shown(ours.get(key))}; use the same value to resume, or another directory"
                )
        if iteration > ours["iterations"]:
            raise PeckerError(
                f"{where} holds a run of {iteration} iterations, more than the "
                f"{ours['iterations']} asked for; raise iterations, or choose another directory"
            )

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted key, e.g. `mask.density`."""
        return dict(_flatten(self.model_dump(), ""))

    def changed(self: S, values: Mapping[str, Any]) -> S:
        """The same with other values under these dotted keys, checked again.

        Raises:
            PeckerError: They are not known, out of range, or do not go together.
        """
        settings = self.model_dump()
        apply_overrides(type(self), settings, values)
        return build(type(self), settings, None)

    def to_yaml(self) -> str:
        """The whole configuration as YAML that can be read back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def recipes_in(folder: Path) -> list[str]:
    """Names of the recipes in a folder of the package, those left out that others begin with."""
    return sorted(file.stem for file in folder.glob("[!_]*.yaml"))


def load(
    kind: type[S],
    path: str | Path | None,
    overrides: Mapping[str, Any] | None,
    folders: Sequence[Path],
) -> S:
    """Read a configuration and lay flags over it.

    Args:
        kind: What it is a configuration of.
        path: A YAML file, or the name of a shipped recipe. None = the defaults.
        overrides: Dotted keys, e.g. `{"mask.density": 0.1}`. They win over the file.
        folders: Where recipes are.

    Raises:
        PeckerError: A file that cannot be read, an unknown key (the nearest valid one is named),
            or a value out of range.
    """
    settings = {} if path is None else read_settings(Path(path), folders)
    apply_overrides(kind, settings, overrides or {})
    return build(kind, settings, path)


def read_settings(
    path: Path, folders: Sequence[Path], above: Sequence[Path] = (), *, own: bool = False
) -> dict[str, Any]:
    """What a YAML file holds, or the shipped recipe of that name.

    A file may build on another: `base: NAME`, a recipe or a file beside it, whose settings count
    wherever it says nothing itself, also within a section.

    Args:
        path: The file, or the bare name of a recipe. A file of that name wins over the recipe; a
            folder (`demo` is also where the demo's run lies) never counts.
        folders: Where recipes are.
        above: Files that build on this one.
        own: Leave out what shipped recipes say.

    Raises:
        PeckerError: No such file or recipe, a folder, not readable, not YAML, or not `key: value`
            lines; or it builds on itself.
    """
    if path.parts == (path.name,) and path.suffix == "" and not path.is_file():
        shipped = (folder / f"{path.name}.yaml" for folder in folders)
        path = next((file for file in shipped if file.is_file()), path)
    if path.is_dir() or not path.exists():
        names = sorted(name for folder in folders for name in recipes_in(folder))
        wrong = f"{path} is a folder" if path.is_dir() else f"no configuration file {path}"
        raise PeckerError(f"{wrong}; shipped recipes are {', '.join(names)}")
    settings = {} if own and path.parent in folders else read_yaml(path)
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise PeckerError(f"{path} must hold 'key: value' lines, got a {type(settings).__name__}")
    if (base := settings.pop("base", None)) is None:
        return settings
    if not isinstance(base, str):
        raise PeckerError(f"{path}: base must be the name of a recipe or file, got {shown(base)}")
    if path.resolve() in above:
        raise PeckerError(f"{path} builds on itself; name another recipe or file as its base")
    below = Path(base) if Path(base).suffix == "" else path.parent / base
    return _laid_over(read_settings(below, folders, [*above, path.resolve()], own=own), settings)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both together; `above` counts where both say something that is no section."""
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = _laid_over(below[key], above[key])
    return both


def apply_overrides(
    kind: type[Settings], settings: dict[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Lay dotted keys over settings, in place; `kind` knows which keys there are.

    Raises:
        PeckerError: A key below something that is no section.
    """
    for key, value in overrides.items():
        *sections, last = key.split(".")
        inner = settings
        for name in sections:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise PeckerError(_unknown(kind, key))
        inner[last] = value


def build(kind: type[S], settings: Mapping[str, Any], path: str | Path | None) -> S:
    """The checked configuration.

    Raises:
        PeckerError: An unknown key (the nearest valid one is named), or a value out of range.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        origin = f" in {path}" if path is not None else ""
        raise PeckerError(_one_line(kind, error) + origin) from None


def _flatten(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _known(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key there is, those of optional sections included."""
    for name, field in kind.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            yield f"{prefix}{name}"
        else:
            yield from _known(section, f"{prefix}{name}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, always or where it is not None."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    for part in typing.get_args(annotation) if union else (annotation,):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _unknown(kind: type[BaseModel], key: str) -> str:
    if key in GONE:
        return f"{key} is no configuration key any more: {GONE[key]}; leave it out"
    known = list(_known(kind))
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.0)
    # A key that is right but for its section is nearer than any spelling.
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    return f"unknown configuration key {shown(key)}; did you mean {(same_name or near)[0]!r}?"


def _one_line(kind: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return _unknown(kind, ".".join(parts))
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    # The location of a union (int | str, float | None) ends in its branch; the key does not.
    known = list(_known(kind))
    while len(parts) > 1 and ".".join(parts) not in known:
        parts.pop()
    key = ".".join(parts)
    if first["type"] == "model_type":
        keys = [name for name in known if name.startswith(f"{key}.")]
        return f"{key} must be a section with keys such as {keys[0]!r}, got {shown(first['input'])}"
    message = first["msg"].replace("Input should be", "must be", 1)
    return f"{key} {message}, got {shown(first['input'])}"
