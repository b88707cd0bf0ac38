"""What a run will take, before it is started: memory, time and disk; nothing is written.

The memory is computed from shapes first (runs/memory_model.py), so that what does not fit is said
in seconds, with the settings that would make it fit. Then two iterations are run and timed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.machine import free_bytes, out_of_memory, resident_bytes
from pecker_fast.progress import note
from pecker_fast.runs.config import RunConfig
from pecker_fast.runs.masked import MaskedRun
from pecker_fast.runs.memory_model import NOT_COUNTED, Peak
from pecker_fast.runs.run import Run

__all__ = ["DryRun", "Trial", "naming_settings", "try_out"]

# What takes the least memory, of the settings that a configuration may have: first what changes no
# result.
_FRUGAL = (
    ("micro_batch", 1),
    ("recompute", True),
    ("optimizer.release_grads", True),
    ("precision", "bf16"),
    ("precision", "autocast"),  # where there are no weights of half precision
    ("mask.apply", "both"),
)
_TIMED = 2
_PER_ENTRY = 8
"""Bytes of mask and patch for an entry that may change, at most."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What there is to try of a run. Settings to change come as dotted keys with their values."""

    config: RunConfig
    device: torch.device
    out: Path  # the run directory that it would have
    network: nn.Module  # what it starts from; shapes are enough
    held: int  # bytes of its peak that this process holds already, if they are on the CPU
    model: Callable[[Mapping[str, Any]], Peak]  # what it takes with these settings changed
    start: Callable[[Mapping[str, Any]], Run[Any]]  # makes it with them, without a directory
    mask: str = ""  # where its mask comes from, in a word
    searches: int = 0  # times that the run computes what `start` computes to find the mask
    result_bytes: int  # what its result takes on the disk


@dataclass(frozen=True)
class DryRun:
    """What a run will take on this machine."""

    network: str  # what is trained, in words
    mask: str | None  # how many entries may change, in words; None where there is no mask
    device: str
    peak: Peak  # the most memory that the run holds there, computed
    process_bytes: int  # on a CPU what this process holds besides; else 0
    free_bytes: int | None  # before the iterations that are tried; None where that is not known
    measured_bytes: int | None  # the most in these iterations: on a CPU all of this process's
    iteration_s: float  # the faster of two
    finding_s: float  # of finding the mask; 0 where none is searched for
    iterations: int  # the most that the run will do
    disk_bytes: int  # what it writes, at most at a time
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
        if self.mask is not None:
            yield f"mask             {self.mask}"
        yield f"memory           {_size(total)} on {self.device}, computed; at {self.peak.moment}:"
        for kind, size in self.peak.parts.items():
            yield f"{_size(size):>25}  {kind}"
        if self.process_bytes:
            yield f"{_size(self.process_bytes):>25}  this process: Python, packages, what was read"
        yield f"                 not counted: {NOT_COUNTED}"
        if self.measured_bytes is not None:
            yield f"measured         {_size(self.measured_bytes)} in {_TIMED} iterations"
        if self.free_bytes is not None:
            yield f"free             {_size(self.free_bytes)}"
        yield f"iteration        {self.iteration_s:.3g} s, the faster of {_TIMED}"
        more = f" and {_time(self.finding_s)} to find the mask" if self.finding_s else ""
        if self.mask is not None:
            more += "; judging comes on top"
        yield f"time             {_time(self.run_s)}: {self.iterations:,} iterations{more}"
        free = _size(self.free_disk_bytes)
        yield f"disk             {_size(self.disk_bytes)} at most, {free} free"


def try_out(trial: Trial) -> DryRun:
    """Compute what a run takes, then try it.

    Raises:
        PeckerError: it does not fit; one line, with the settings that make it fit.
    """
    with naming_settings(trial.config):  # a batch alone may be too large
        return _tried(trial)


def _frugal_settings(config: RunConfig) -> dict[str, Any]:
    """What would take less memory, of the settings that this configuration has otherwise."""
    now, found = config.flat(), {}
    for key, value in _FRUGAL:
        if key in now and now[key] not in (value, "bf16") and key not in found:
            with suppress(PeckerError):  # it does not go with what else is set
                config.changed({key: value})
                found[key] = value
    return found


@contextmanager
def naming_settings(config: RunConfig) -> Iterator[None]:
    """Say in one line that memory ran out in the block, and what to set.

    Raises:
        PeckerError: It did, on the CPU or a GPU.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (found := out_of_memory(error)) is None:
            raise
        now = config.flat()
        sizes = [key for key in ("batch_size", "saliency.batch_size") if now.get(key, 1) > 1]
        lower = " and ".join(f"{key} (now {now[key]})" for key in sizes)
        other = ", ".join(f"{k}={str(v).lower()}" for k, v in _frugal_settings(config).items())
        ways = [f"{verb} {what}" for verb, what in (("lower", lower), ("set", other)) if what]
        remedy = "; or ".join(ways) or "use a machine with more"
        raise PeckerError(f"{found}; {remedy}") from error


def _tried(trial: Trial) -> DryRun:
    device = trial.device
    changed = _changed(trial)
    peak = trial.model(changed)
    free, process = free_bytes(), 0
    held = 0 if device.type == "cuda" else trial.held
    if device.type != "cuda":
        process = max(0, (resident_bytes() or held) - held)
    if free is not None and peak.size - held > free:
        raise PeckerError(_too_large(trial, peak, free, held))

    note(f"{_size(peak.size + process)} of memory at the peak; trying {_TIMED} iterations ...")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = trial.start(changed)
    seconds = []
    for _ in range(run.warm_up + _TIMED):
        begun = time.monotonic()
        torch.stack(list(run.iterate())).sum().item()  # waits for the device
        seconds.append(time.monotonic() - begun)
    place = _existing(trial.out)
    mask = run.mask if isinstance(run, MaskedRun) else None
    # Two checkpoints are kept while the next one is written.
    disk = 3 * run.checkpoint_bytes() + trial.result_bytes
    found = DryRun(
        network=_network(trial.network, [name for name, _ in run.networks()]),
        mask=None
        if mask is None
        else f"{mask.nnz:,} of {mask.numel:,} entries may change ({trial.mask}, density "
        f"{mask.density:.3g})",
        device=str(device),
        peak=peak,
        process_bytes=process,
        free_bytes=free,
        measured_bytes=_measured(device),
        iteration_s=min(seconds[-_TIMED:]),
        finding_s=run.finding_s * trial.searches if isinstance(run, MaskedRun) else 0.0,
        iterations=trial.config.length,
        disk_bytes=disk if mask is None else disk + _PER_ENTRY * mask.nnz,
        free_disk_bytes=shutil.disk_usage(place).free,
    )
    if found.disk_bytes > found.free_disk_bytes:
        raise PeckerError(
            f"the run writes up to {_size(found.disk_bytes)}, and {_size(found.free_disk_bytes)} "
            f"are free at {place}; free some, or choose another place with --out"
        )
    return found


def _changed(trial: Trial) -> dict[str, Any]:
    """What a trial has otherwise than its run: no event files, more iterations than are tried."""
    return {"logging.tensorboard": False, "iterations": max(64, trial.config.length)}


def _too_large(trial: Trial, peak: Peak, free: int, held: int) -> str:
    """What is said of a run that does not fit: which settings would help, and how far."""
    known, changed = trial.config.flat(), _changed(trial)
    taken: dict[str, Any] = {}
    least = peak.size
    ways = list(_frugal_settings(trial.config).items())
    if known.get("recompute_blocks") is False:  # not every network has blocks
        ways.append(("recompute_blocks", True))
    if known.get("saliency.batch_size", 1) > 1:
        ways.append(("saliency.batch_size", 1))
    if "micro_batch" not in known:
        sizes = (known["batch_size"] >> halved for halved in itertools.count(1))
        ways += [("batch_size", size) for size in itertools.takewhile(bool, sizes)]
    for key, value in ways:
        with suppress(PeckerError):  # not with this network, or not with what is taken already
            tried = {**taken, key: value}
            if (part := tried.get("micro_batch")) and known["batch_size"] > 2 * part:
                tried["batch_size"] = 2 * part  # the parts after the second need no more
            size = trial.model({**changed, **tried}).size
            if size < least:
                taken[key], least = value, size
            if least - held <= free:
                break
    options = " ".join(f"--set {key}={str(value).lower()}" for key, value in taken.items())
    need = (
        f"the run takes {_size(peak.size - held)} more memory on {trial.device} (at "
        f"{peak.moment}), and {_size(free)} are free"
    )
    if least - held > free:
        smallest = f", and {_size(least - held)} with {options}" if options else ""
        return f"{need}{smallest}; use a machine with more"
    return f"{need}; {options} takes {_size(least - held)}"


def _network(network: nn.Module, learning: list[str]) -> str:
    params = list(network.parameters())
    who = " and ".join(name.replace("_", "-") for name in learning if name)
    return (
        f"{type(network).__name__}, {sum(p.numel() for p in params):,} parameters in "
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
