"""Whatever `erase` is given, as a folder: a path, an id of the hub, a file, a live pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import few
from pecker_fast.models.architectures import architecture_of
from pecker_fast.models.description import pipeline_parts
from pecker_fast.models.weights import FLOATS, as_dtype, first_line
from pecker_fast.runs.finding import is_hub_id
from pecker_fast.torch_files import open_tensors

__all__ = ["hub_id_of_live", "is_live", "load_single_file", "written"]


def is_live(source: object) -> bool:
    """Whether this is a pipeline of diffusers in memory."""
    from diffusers import DiffusionPipeline

    return isinstance(source, DiffusionPipeline)


def hub_id_of_live(pipeline: Any) -> str | None:
    """The id on the hub that a pipeline in memory was loaded from; None for one from elsewhere."""
    name = pipeline.config.get("_name_or_path")
    return name if isinstance(name, str) and is_hub_id(name) else None


def load_single_file(file: Path, config: Path) -> Any:
    """A pipeline of diffusers from a checkpoint in one file, in its precision.

    Args:
        file: a .safetensors file.
        config: the folder of a pipeline of the same kind, for what the file does not say. Nothing
            is downloaded.

    Raises:
        PeckerError: one of them cannot be read, they do not fit, or the pipeline is of a kind that
            is not known here or never in one file.
    """
    import diffusers

    if file.suffix != ".safetensors":
        raise PeckerError(
            f"pipeline {file}: a checkpoint in one file must be a .safetensors; others are "
            "pickles, which may run code, and are not read"
        )
    name, parts = pipeline_parts(config / "model_index.json")
    family = architecture_of(name, parts, config)
    read = getattr(getattr(diffusers, name, None), "from_single_file", None)
    if read is None:
        raise PeckerError(f"pipeline folder {config}: diffusers has no {name} in one file")
    with open_tensors(file) as opened:
        kinds = {opened.get_slice(name).get_dtype() for name in opened.keys()} & FLOATS.keys()
    dtype = FLOATS[kinds.pop()] if len(kinds) == 1 else torch.float32
    how = {"config": str(config.absolute()), "local_files_only": True, **as_dtype(dtype)}
    try:
        return read(str(file), **how)
    except Exception as error:  # diffusers raises many kinds
        raise PeckerError(
            f"pipeline {file}: is no {family.name} as {config} is one ({first_line(error)})"
        ) from error


@contextmanager
def written(pipeline: Any, near: Path) -> Iterator[Path]:
    """The folder of a live pipeline, as long as the block lasts.

    It holds the weights in the precision that they have; what is read from it is checked as any
    other folder's. The pipeline stays as it is.

    Raises:
        PeckerError: it has LoRA or other adapters loaded, or was offloaded in parts.
    """
    _check_whole(pipeline)
    parent = next(place for place in near.absolute().parents if place.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{near.name}.", suffix=".tmp", dir=parent) as place:
        folder = Path(place, "pipeline")
        pipeline.save_pretrained(folder, safe_serialization=True)
        del pipeline  # its memory is free where nobody else has it
        yield folder


def _check_whole(pipeline: Any) -> None:
    """Refuse a pipeline whose weights are not all there as they are."""
    for part, module in pipeline.components.items():
        if not isinstance(module, nn.Module):
            continue
        if adapted := [n for n, m in module.named_modules() if hasattr(m, "base_layer")]:
            raise PeckerError(
                f"pipeline: its {part} has adapters loaded ({few(adapted, 1)}); make them part of "
                "the weights first: pipe.fuse_lora(), then pipe.unload_lora_weights(); layers of "
                "PEFT by their merge_and_unload()"
            )
        if any(param.is_meta for param in module.parameters()):
            raise PeckerError(
                f"pipeline: weights of its {part} are offloaded; load it without "
                "enable_sequential_cpu_offload and device_map"
            )
