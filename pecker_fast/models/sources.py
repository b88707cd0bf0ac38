"""Whatever `erase` is given, as a folder: a path, an id of the hub, a file, a live pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import few

__all__ = ["is_live", "written"]


def is_live(source: object) -> bool:
    """Whether this is a pipeline of diffusers in memory."""
    from diffusers import DiffusionPipeline

    return isinstance(source, DiffusionPipeline)


@contextmanager
def written(pipeline: Any, near: Path) -> Iterator[Path]:
    """The folder of a live pipeline, as long as the block lasts.

    It holds the weights in the precision that they have; what is read from it is checked as any
    other folder's. The pipeline stays as it is.

    Raises:
        PeckerError: it has LoRA or other adapters loaded, or was offloaded in parts.
    """
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
    parent = next(place for place in near.absolute().parents if place.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{near.name}.", suffix=".tmp", dir=parent) as place:
        folder = Path(place, "pipeline")
        pipeline.save_pretrained(folder, safe_serialization=True)
        yield folder
