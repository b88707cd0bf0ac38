"""What the small files of model and pipeline folders say: pecker_fast.json and model_index.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, NonNegativeInt

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, read_json, shown
from pecker_fast.models.schedules import Scheduler, read_schedule, scheduler_of
from pecker_fast.runs.reading import Names, Schema, checked

__all__ = [
    "DESCRIPTION", "INDEX", "ClassDescription", "PipelineDescription", "pipeline_parts",
    "read_about", "read_description",
]  # fmt: skip

DESCRIPTION = "pecker_fast.json"
INDEX = "model_index.json"


class _Frozen(Schema):
    """What was compared with what, after a run."""

    model_config = ConfigDict(extra="allow")

    digests: dict[str, str] = Field(default_factory=dict)


class _Figures(Schema):
    """Measured figures, and what a run says of itself."""

    model_config = ConfigDict(extra="allow")

    t_init: NonNegativeInt | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    frozen: _Frozen = _Frozen()


class ClassDescription(Schema):
    """pecker_fast.json of a class model; people write it by hand."""

    kind: Annotated[str, Field(pattern="^(teacher|generator)$")] = "teacher"
    class_names: Names = Field(default_factory=list)
    patch_size: Annotated[int, Field(ge=1, le=64)] = 1
    null_label: NonNegativeInt | None = None
    figures: _Figures = _Figures()
    schedule: dict[str, Any] | None = None  # checked as scheduler_config.json is


class PipelineDescription(_Figures):
    """pecker_fast.json of a pipeline."""

    kind: Annotated[str, Field(max_length=100)] = "text-to-image"
    class_names: Names = Field(default_factory=list)
    schedule: dict[str, Any] | None = None
    sample_size: Annotated[int, Field(ge=1, le=1 << 14)] | None = None  # where a network takes any


def read_about(root: Path, schema: type[Schema]) -> dict[str, Any]:
    """Read pecker_fast.json of a folder, as it stands there; nothing where there is none.

    Raises:
        PeckerError: it cannot be read or does not fit.
    """
    about = root / DESCRIPTION
    if not os.path.lexists(about):
        return {}
    content = read_json(about)
    checked(schema, content, about)
    return dict(content)


def read_description(
    root: Path, schema: type[Schema]
) -> tuple[dict[str, Any], dict[str, Any], Scheduler]:
    """Read pecker_fast.json of a folder, where it is there, and the noise schedule.

    Returns:
        The description without `schedule`; the configuration of the noise schedule, of a one-step
        generator the whole one; and its scheduler.

    Raises:
        PeckerError: one of them cannot be read or does not fit, or there is no schedule.
    """
    said, source = read_about(root, schema), root / DESCRIPTION
    schedule = said.pop("schedule", None)
    if schedule is None:
        places = [place / "scheduler_config.json" for place in (root / "scheduler", root)]
        source = next((place for place in places if os.path.lexists(place)), places[0])
        schedule = read_schedule(source)
    scheduler = scheduler_of(schedule, source)
    where, prefix = said, ""
    if schema is ClassDescription:
        where, prefix = said.get("figures", {}), "figures."
    t_init = where.get("t_init") or 0
    if t_init >= (steps := schedule["num_train_timesteps"]):
        raise PeckerError(
            f"{root / DESCRIPTION}: {prefix}t_init must be below the {steps} time steps of the "
            f"noise schedule, got {shown(t_init)}"
        )
    return said, schedule, scheduler


def pipeline_parts(file: Path) -> tuple[str, dict[str, str | None]]:
    """Read model_index.json: the pipeline's class, and the class of each of its parts.

    Raises:
        PeckerError: it cannot be read, or is no index of a pipeline.
    """
    index = read_json(file)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise PeckerError(f"{file}: expected an object with '_class_name', got {shown(index)}")
    # What is no list is an option, such as requires_safety_checker.
    lists = {part: value for part, value in index.items() if isinstance(value, list)}
    for part, value in lists.items():
        if len(value) != 2 or not all(isinstance(word, str | None) for word in value):
            raise PeckerError(
                f"{file}: {few([part])} must be a library and a class in it, such as "
                f'["diffusers", "UNet2DModel"], got {shown(value)}'
            )
    return index["_class_name"], {part: value[1] for part, value in lists.items()}
