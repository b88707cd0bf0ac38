"""What a run will take, before it is started: memory, time and disk; nothing is written.

The memory is computed from shapes first (runs/memory_model.py), so that what does not fit is said
in seconds, with the settings that would make it fit. Then two iterations are run and timed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pecker_fast.erasure.run import Task
from pecker_fast.errors import PeckerError
from pecker_fast.machine import free_bytes, resident_bytes
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.progress import note, quiet
from pecker_fast.runs.memory import frugal_settings, naming_settings
from pecker_fast.runs.memory_model import NOT_COUNTED, Peak, model_peak, outside, replaced

__all__ = ["DryRun", "try_out"]

_TIMED = 2
_MODELLED = {
    "optimizer.backend": "reference", "accelerate": False, "graph": "off", "saliency.batches": 1,
}  # fmt: skip
"""What the model runs with: torch's blocks, and of the mask's gradients the first."""
_MORE = {"recompute_blocks": True}
"""Besides `frugal_settings`, where the network has blocks that can be computed again."""
_PER_ENTRY = 8
"""Bytes of mask and patch for an entry that may change, at most."""


@dataclass(frozen=True)
class DryRun:
    """What a run will take on this machine.

    Attributes:
        network: what is trained, in words.
        mask: how many entries may change, in words.
        device: where.
        peak: the most memory that the run holds there, computed.
        process_bytes: on a CPU what this process holds besides; else 0.
        free_bytes: what was to be had before the two iterations; None where that is not known.
        measured_bytes: the most memory of the two iterations, as measured: on a CPU all of this
            process's. None where it cannot be.
        iteration_s: seconds of an iteration, the faster of two.
        finding_s: of finding the mask; 0 where none is searched for.
        iterations: the most that the run will do.
        disk_bytes: what it writes, at most at a time.
        free_disk_bytes: what there is.
    """

    network: str
    mask: str
    device: str
    peak: Peak
    process_bytes: int
    free_bytes: int | None
    measured_bytes: int | None
    iteration_s: float
    finding_s: float
    iterations: int
    disk_bytes: int
    free_disk_bytes: int

    @property
    def run_s(self) -> float:
        """Seconds of the run, without judging."""
        return self.finding_s + self.iterations * self.iteration_s

    def to_dict(self) -> dict[str, Any]:
        """Plain types, in bytes and seconds."""
        return {**asdict(self), "run_s": self.run_s}

    def lines(self) -> Iterator[str]:
        """The same to read."""
        total = self.peak.size + self.process_bytes
        yield f"network          {self.network}"
        yield f"mask             {self.mask}"
        yield f"memory           {_size(total)} on {self.device}, computed; at {self.peak.moment}:"
        for kind, size in self.peak.parts.items():
            yield f"{_size(size):>25}  {kind}"
        if self.process_bytes:
            yield f"{_size(self.process_bytes):>25}  this process: Python, packages, prompts"
        yield f"                 not counted: {NOT_COUNTED}"
        if self.measured_bytes is not None:
            yield f"measured         {_size(self.measured_bytes)} in {_TIMED} iterations"
        if self.free_bytes is not None:
            yield f"free             {_size(self.free_bytes)}"
        yield f"iteration        {self.iteration_s:.3g} s, the faster of {_TIMED}"
        finding = f" and {_time(self.finding_s)} to find the mask" if self.finding_s else ""
        yield (
            f"time             {_time(self.run_s)}: {self.iterations:,} iterations{finding}; "
            "judging comes on top"
        )
        free = _size(self.free_disk_bytes)
        yield f"disk             {_size(self.disk_bytes)} at most, {free} free"


def try_out(task: Task[Any, Any]) -> DryRun:
    """Compute what a task's run takes, then try it.

    Raises:
        PeckerError: it does not fit; one line, with the settings that make it fit.
    """
    with naming_settings(task.config):  # a batch alone may be too large
        return _tried(task)


def _tried(task: Task[Any, Any]) -> DryRun:
    device, config = task.site.device, task.config
    peak = _modelled(task, {})
    free, process = free_bytes(), 0
    held = 0 if device.type == "cuda" else sum(p.nbytes for p in task.original.parameters())
    if device.type != "cuda":
        process = max(0, (resident_bytes() or held) - held)
    if free is not None and peak.size - held > free:
        raise PeckerError(_too_large(task, peak, free, held))

    note(f"{_size(peak.size + process)} of memory at the peak; trying {_TIMED} iterations ...")
    searched = task.site.mask is None and config.mask.kind == "saliency"
    batches, values = 1, {}
    if searched and not (isinstance(config, BaselineConfig) and not config.data_free):
        batches, values = config.saliency.batches, {"saliency.batches": 1}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = task.tried(values, lambda network: network).start(None)
    seconds = []
    for _ in range(trainer.warm_up + _TIMED):
        begun = time.monotonic()
        torch.stack(list(trainer.iterate())).sum().item()  # waits for the device
        seconds.append(time.monotonic() - begun)
    place = _existing(task.site.out)
    entries = trainer.mask.nnz
    # Two checkpoints are kept while the next one is written.
    disk = 3 * trainer.checkpoint_bytes() + task.result_bytes + _PER_ENTRY * entries
    found = DryRun(
        network=_network(task, [name for name, _ in trainer.networks()]),
        mask=f"{entries:,} of {trainer.mask.numel:,} entries may change "
        f"({config.mask.kind if task.site.mask is None else 'given'}, density "
        f"{trainer.mask.density:.3g})",
        device=str(device),
        peak=peak,
        process_bytes=process,
        free_bytes=free,
        measured_bytes=_measured(device),
        iteration_s=min(seconds[-_TIMED:]),
        finding_s=trainer.finding_s * batches if searched else 0.0,
        iterations=config.length,
        disk_bytes=disk,
        free_disk_bytes=shutil.disk_usage(place).free,
    )
    if disk > found.free_disk_bytes:
        raise PeckerError(
            f"the run writes up to {_size(disk)}, and {_size(found.free_disk_bytes)} are free at "
            f"{place}; free some, or choose another place with --out"
        )
    return found


def _modelled(task: Task[Any, Any], values: Mapping[str, Any]) -> Peak:
    """What a task takes with some settings changed."""
    objective = task.objective
    objective.schedule.tables(objective.device, objective.dtype)  # kept, so they must be real
    known = task.config.flat()
    fixed = {key: value for key, value in _MODELLED.items() if key in known}

    def start(copied: Callable[[nn.Module], nn.Module]) -> Any:
        return task.tried({**values, **fixed}, copied).start(None)

    # Their values decide which prompts are drawn.
    drawn = type(getattr(objective, "conditions", objective))
    changes = [(drawn, "draw", outside(drawn.draw))] if hasattr(drawn, "draw") else []
    with replaced(*changes), quiet():
        return model_peak(start, task.site.device)


def _too_large(task: Task[Any, Any], peak: Peak, free: int, held: int) -> str:
    """What is said of a run that does not fit: which settings would help, and how far."""
    taken: dict[str, Any] = {}
    least = peak.size
    known = task.config.flat()
    more = {key: value for key, value in _MORE.items() if known.get(key) == (not value)}
    ways = {**frugal_settings(task.config), **more}
    if known.get("saliency.batch_size", 1) > 1:
        ways["saliency.batch_size"] = 1
    for key, value in ways.items():
        with suppress(PeckerError):  # not with this network, or not with what is taken already
            tried = {**taken, key: value}
            if (part := tried.get("micro_batch")) and known["batch_size"] > 2 * part:
                tried["batch_size"] = 2 * part  # the parts after the second need no more
            size = _modelled(task, tried).size
            if size < least:
                taken[key], least = value, size
            if least - held <= free:
                break
    options = " ".join(f"--set {key}={str(value).lower()}" for key, value in taken.items())
    need = (
        f"the run takes {_size(peak.size - held)} more memory on {task.site.device} (at "
        f"{peak.moment}), and {_size(free)} are free"
    )
    if least - held > free:
        smallest = f", and {_size(least - held)} with {options}" if options else ""
        return f"{need}{smallest}; use a machine with more"
    return f"{need}; {options} takes {_size(least - held)}"


def _network(task: Task[Any, Any], learning: list[str]) -> str:
    params = list(task.original.parameters())
    who = " and ".join(name.replace("_", "-") for name in learning if name)
    return (
        f"{type(task.original).__name__}, {sum(p.numel() for p in params):,} parameters in "
        f"{str(params[0].dtype).removeprefix('torch.')}" + (f"; {who} learn" if who else "")
    )


def _measured(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes(peak=True)


def _existing(path: Path) -> Path:
    """The folder that exists of those in which a path lies."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if place.is_dir())


def _size(size: int) -> str:
    if size >= 2**29:
        return f"{size / 2**30:,.1f} GiB"
    return f"{size / 2**20:,.{0 if size >= 10 << 20 else 1}f} MiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
