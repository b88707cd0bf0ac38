"""What every benchmark is made of: cases, providers, the gate, the timer, rows.

A benchmark is a list of cases. A case makes its input and names its providers, ways to do the same
work. Each provider is built and its result checked on that very input, and one that fails has no
time. Rows are written as they come, so a run that is cut off leaves what it has measured; speed-ups
are ratios of rows (`rows.speed_up`), and only of checked ones.

On the CPU providers take turns, so all see the same load. On a GPU one is built, measured and freed
after the other. See timing.py for how the clocks are read.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from rows import RESULTS, Row, slug, write_results
from tables import markdown
from timing import Call, GpuTimer, Timing, bandwidth, in_turns, machine

from pecker_fast import backends
from pecker_fast.errors import PeckerError


class NotApplicable(Exception):
    """A provider cannot do this case; the message says why."""


@dataclass
class Provider:
    """One way to do the work of a case, built and checked."""

    call: Call | None  # does it. None: there is nothing to time.
    match: bool | None = None  # it passed its check; None: nothing to check it against
    # Of its row, known before it is timed; from `bytes_moved`, the least that it must move, follows
    # a share of the bandwidth.
    columns: Row = field(default_factory=dict)
    prepare: Call = lambda: None  # called before each call on a GPU and not timed


Builder = Callable[[], Provider]


@dataclass(frozen=True)
class Setup:
    """Where and how a run measures."""

    device: str  # "cpu" or a CUDA device
    backends: Sequence[str]  # ours that are measured
    repeats: int  # timed calls of each provider
    # Bandwidth by kind, as of `timing.bandwidth`.
    gb_per_s: Mapping[str, float] = field(default_factory=dict)
    timer: GpuTimer | None = None  # None on the CPU
    only: Sequence[str] = ()  # names of providers; empty: all


@dataclass(frozen=True)
class Case:
    """One input; its fields are columns of all of its rows."""

    benchmark: ClassVar[str]  # name of what is measured
    # The bandwidth that shares are of. None: no bandwidth is needed.
    roof: ClassVar[str | None] = None

    preset: str

    def __str__(self) -> str:
        rest = (f"{f.name}={getattr(self, f.name)}" for f in fields(self)[1:])
        return " ".join([self.benchmark, self.preset, *rest])

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """Name -> how it is built. They hold the input; nothing else does."""
        raise NotImplementedError

    def measure(self, setup: Setup, provider: Provider) -> Timing:
        """Time a provider on a GPU."""
        return setup.timer.measure(provider.call, setup.repeats, provider.prepare)

    def rows(self, setup: Setup) -> Iterator[Row]:
        """Check, then time every provider; rows come as soon as they are complete.

        Raises:
            PeckerError: a provider was asked for that the case does not have.
        """
        builders = self.providers(setup)
        if unknown := set(setup.only) - builders.keys():
            names = ", ".join(builders)
            raise PeckerError(f"no provider {min(unknown)!r}: expected one of {names}")
        waiting: dict[str, tuple[Provider, Row]] = {}
        for name in setup.only or list(builders):
            row: Row = {"benchmark": self.benchmark, **asdict(self), "provider": name}
            row["match"] = None
            try:
                provider = builders.pop(name)()
                row |= {"match": provider.match, **provider.columns}
                if provider.match is False:
                    row["skipped"] = "its result is wrong"
                elif provider.call is not None and setup.timer is None:
                    waiting[name] = provider, row
                elif provider.call is not None:
                    row |= self._timed(setup, provider, self.measure(setup, provider))
            except NotApplicable as reason:
                row["skipped"] = str(reason)
            except torch.OutOfMemoryError as error:
                # "CUDA out of memory. Tried to allocate 9.56 GiB"
                row["skipped"] = ". ".join(str(error).split(". ")[:2])
            provider = None  # the next one has all of the memory
            _free(setup.device)
            if name not in waiting:
                yield row
        calls = {name: one.call for name, (one, _) in waiting.items()}
        timings = in_turns(calls, setup.repeats)
        for name, (provider, row) in waiting.items():
            yield row | self._timed(setup, provider, timings[name])

    def _timed(self, setup: Setup, provider: Provider, timing: Timing) -> Row:
        row = timing.columns()
        if self.roof is not None:
            moved = provider.columns["bytes_moved"] / row["p50_ms"] / 1e6
            row["roof_share"] = moved / setup.gb_per_s[self.roof]
        return row


def _free(device: str) -> None:
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def usable_backends(requested: Sequence[str] | None, device: str) -> list[str]:
    """The backends to measure: those asked for, else every optimized one for `device`.

    Raises:
        PeckerError: one that was asked for cannot be used.
    """
    if requested:
        return [backends.name_of(backends.select(name, device)) for name in requested]
    # On the CPU, GPU kernels run for tests only.
    names = ("cpu",) if torch.device(device).type == "cpu" else ("cuda", "triton")
    reasons = backends.available()
    return [name for name in names if reasons.get(name, "") is None] or ["reference"]


# ---- a run


def make_parser(doc: str, repeats: int, device: str = "cpu") -> argparse.ArgumentParser:
    """The options that every benchmark has, with their defaults."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default=device)
    parser.add_argument("--backend", nargs="+", help="default: every one for the device")
    parser.add_argument("--provider", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="cases whose line contains one"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--commit", help="of the sources, where git cannot tell")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser


def command(
    arguments: argparse.Namespace, cases: Sequence[Case], file_of_card: bool = False
) -> int:
    """Run the cases that were asked for, print their rows and write them as they come.

    Args:
        arguments: of a parser that `make_parser` made.
        cases: all there are.
        file_of_card: without --json write to results/<card>.json.

    Returns:
        The exit code: 1 if a result was wrong or a case failed, 2 for options that cannot be.
    """
    chosen = [case for case in cases if any(text in str(case) for text in arguments.only)]
    if arguments.list or not chosen:
        print(*(chosen or cases), sep="\n")
        return 0 if chosen else 2
    try:
        setup, about = _start(arguments, any(case.roof is not None for case in chosen))
    except PeckerError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    path = arguments.json or (RESULTS / f"{slug(about['device'])}.json" if file_of_card else None)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    result: dict[str, Any] = {"machine": about, "complete": False, "failures": [], "rows": []}
    begin = time.monotonic()
    for case in chosen:
        print(f"[{time.monotonic() - begin:4.0f} s] {case}", flush=True)
        first = len(result["rows"])
        try:
            for row in case.rows(setup):
                result["rows"].append(row)
                if path is not None:
                    write_results(path, result)
        except Exception as error:  # the other cases are worth having; the exit code tells
            traceback.print_exc()
            failure = f"{case}: {type(error).__name__}: {error}".splitlines()[0]
            result["failures"].append(failure)
        rows = result["rows"][first:]
        for row in rows:
            if "skipped" in row:
                print(f"{row['provider']}: no time: {row['skipped']}", flush=True)
        print(markdown(rows), flush=True)
        _free(setup.device)
    result["complete"] = len(chosen) == len(cases)
    if path is not None:
        write_results(path, result)
    wrong = any(row["match"] is False for row in result["rows"])
    return 1 if wrong or result["failures"] else 0


def _start(arguments: argparse.Namespace, roof: bool) -> tuple[Setup, dict[str, Any]]:
    """Measure the bandwidth if a case needs it; the setup, and what to say about the machine."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise PeckerError("torch sees no CUDA device")
    names = usable_backends(arguments.backend, device)
    timer = GpuTimer(device) if on_gpu else None
    gb_per_s = bandwidth(timer, device) if roof else {}
    about = machine(device) | gb_per_s
    if arguments.commit:
        about["commit"] = arguments.commit
    return Setup(device, names, arguments.repeats, gb_per_s, timer, arguments.provider), about
