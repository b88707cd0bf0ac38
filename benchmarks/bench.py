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
from machine import machine
from rows import RESULTS, Row, slug, speed_up, write_results
from timing import Call, GpuTimer, Timing, bandwidth, in_turns

from pecker_fast import backends
from pecker_fast.errors import PeckerError

__all__ = [
    "Builder",
    "Case",
    "NotApplicable",
    "Provider",
    "Setup",
    "command",
    "make_parser",
    "run",
    "usable_backends",
]


class NotApplicable(Exception):
    """A provider cannot do this case; the message says why."""


@dataclass
class Provider:
    """One way to do the work of a case, built and checked.

    Attributes:
        call: does it. None: there is nothing to time.
        match: it passed its check; None: nothing to check it against.
        columns: of its row, known before it is timed. From `bytes_moved` and `floor_bytes`, the
            least that it and that any provider must move, follow shares of the bandwidth.
        prepare: called before each call on a GPU and not timed.
        after: further columns, once it is timed.
    """

    call: Call | None
    match: bool | None = None
    columns: Row = field(default_factory=dict)
    prepare: Call = lambda: None
    after: Callable[[Timing], Row] = lambda timing: {}


Builder = Callable[[], Provider]


@dataclass(frozen=True)
class Setup:
    """Where and how a run measures.

    Attributes:
        device: "cpu" or a CUDA device.
        backends: ours that are measured.
        repeats: timed calls of each provider.
        gb_per_s: bandwidth by kind, as of `timing.bandwidth`.
        timer: None on the CPU.
        only: names of providers; empty: all.
    """

    device: str
    backends: Sequence[str]
    repeats: int
    gb_per_s: Mapping[str, float] = field(default_factory=dict)
    timer: GpuTimer | None = None
    only: Sequence[str] = ()


@dataclass(frozen=True)
class Case:
    """One input; its fields are columns of all of its rows.

    Attributes:
        benchmark: name of what is measured.
        baselines: providers that speed-ups are printed over.
        roof: the bandwidth that shares are of. None: no bandwidth is needed.
    """

    benchmark: ClassVar[str]
    baselines: ClassVar[tuple[str, ...]] = ()
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


# ---- a case


def run(case: Case, setup: Setup) -> Iterator[Row]:
    """Check, then time every provider; rows come as soon as they are complete.

    Raises:
        PeckerError: a provider was asked for that the case does not have.
    """
    head = {"benchmark": case.benchmark, **asdict(case)}
    builders = case.providers(setup)
    if unknown := set(setup.only) - builders.keys():
        raise PeckerError(f"no provider {min(unknown)!r}: expected one of {', '.join(builders)}")
    if setup.only:
        builders = {name: builders[name] for name in setup.only}
    waiting: dict[str, tuple[Provider, Row]] = {}
    for name in list(builders):
        provider, row = _build(builders.pop(name))
        row = {**head, "provider": name, **row}
        if provider is not None and setup.timer is None:
            waiting[name] = provider, row
            continue
        if provider is not None:
            try:
                row |= _timed(case, setup, provider, case.measure(setup, provider))
            except torch.OutOfMemoryError as error:
                row["skipped"] = _out_of_memory(error)
        del provider  # the next one has all of the memory
        _free(setup.device)
        yield row
    timings = in_turns({name: one.call for name, (one, _) in waiting.items()}, setup.repeats)
    for name, (provider, row) in waiting.items():
        yield row | _timed(case, setup, provider, timings[name])


def _build(build: Builder) -> tuple[Provider | None, Row]:
    """The provider, if it is to be timed, and its columns so far."""
    try:
        provider = build()
    except NotApplicable as reason:
        return None, {"match": None, "skipped": str(reason)}
    except torch.OutOfMemoryError as error:
        return None, {"match": None, "skipped": _out_of_memory(error)}
    row = {"match": provider.match, **provider.columns}
    if provider.match is False:
        return None, row | {"skipped": "its result is wrong"}
    return (provider if provider.call is not None else None), row


def _timed(case: Case, setup: Setup, provider: Provider, timing: Timing) -> Row:
    row = timing.columns() | provider.after(timing)
    if case.roof is not None:
        roof, columns = setup.gb_per_s[case.roof], provider.columns
        row["gb_per_s"] = columns["bytes_moved"] / row["p50_ms"] / 1e6
        row["roof_share"] = row["gb_per_s"] / roof
        row["floor_ms"] = columns["floor_bytes"] / roof / 1e6
        row["floor_share"] = row["floor_ms"] / row["p50_ms"]
    return row


def _out_of_memory(error: torch.OutOfMemoryError) -> str:
    # "CUDA out of memory. Tried to allocate 9.56 GiB. GPU 0 has ..."
    return ". ".join(str(error).split(". ")[:2])


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
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose line contains this")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--minutes", type=float, help="start no case after so long")
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
    chosen = [case for case in cases if arguments.only in str(case)]
    if arguments.list or not chosen:
        print(*(chosen or cases), sep="\n")
        return 0 if chosen else 2
    try:
        setup, about = start(arguments, chosen)
    except PeckerError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    path = arguments.json or (RESULTS / f"{slug(about['device'])}.json" if file_of_card else None)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    result: dict[str, Any] = {"machine": about, "complete": False, "failures": [], "rows": []}
    begin = time.monotonic()
    for number, case in enumerate(chosen):
        elapsed = time.monotonic() - begin
        if arguments.minutes is not None and elapsed > 60 * arguments.minutes:
            print(f"out of time: {len(chosen) - number} of {len(chosen)} cases not started")
            break
        print(f"[{elapsed:4.0f} s] {case}", flush=True)
        first = len(result["rows"])
        try:
            for row in run(case, setup):
                result["rows"].append(row)
                _write(path, result)
        except Exception as error:  # the other cases are worth having; the exit code tells
            traceback.print_exc()
            failure = f"{case}: {type(error).__name__}: {error}".splitlines()[0]
            result["failures"].append(failure)
        print_rows(result["rows"][first:], case)
        result["complete"] = number + 1 == len(cases)
        _write(path, result)
        _free(setup.device)
    wrong = any(row["match"] is False for row in result["rows"])
    return 1 if wrong or result["failures"] else 0


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        write_results(path, result)


def start(arguments: argparse.Namespace, cases: Sequence[Case]) -> tuple[Setup, dict[str, Any]]:
    """Measure the bandwidth if a case needs it; the setup, and what to say about the machine.

    Raises:
        PeckerError: no such device, or a backend that cannot be used on it.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise PeckerError("torch sees no CUDA device")
    names = usable_backends(arguments.backend, device)
    timer = GpuTimer(device) if on_gpu else None
    needed = any(case.roof is not None for case in cases)
    gb_per_s = bandwidth(timer, device) if needed else {}
    about = machine(device) | gb_per_s
    if arguments.commit:
        about["commit"] = arguments.commit
    setup = Setup(device, names, arguments.repeats, gb_per_s, timer, arguments.provider)
    return setup, about


# ---- output


_UNPRINTED = ("benchmark", "settings", "notes", "floor_bytes", "floor_ms")


def _cell(key: str, value: Any) -> str:
    """A figure as its column's name says: shares in per cent, bytes in MB."""
    if isinstance(value, dict):  # the largest parts: shares of a time, or bytes
        largest = sorted(value.items(), key=lambda item: -item[1])[:4]
        part = "_share" if max(value.values()) <= 1 else "_bytes"
        return ", ".join(f"{name} {_cell(part, size)}" for name, size in largest)
    if key.endswith("_share"):
        return f"{value:.0%}"
    if "bytes" in key:
        return f"{value / 1e6:,.1f}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def print_rows(rows: Sequence[Row], case: Case) -> None:
    """A table of a case's rows with their speed-ups; bytes are in MB."""
    hidden = {*_UNPRINTED, *asdict(case)}
    over = [name for name in case.baselines if any(row["provider"] == name for row in rows)]
    table = []
    for row in rows:
        factors = {f"x {name}": speed_up(row, rows, name) for name in over}
        shown = {key: value for key, value in (row | factors).items() if key not in hidden}
        table.append({key: _cell(key, value) for key, value in shown.items() if value is not None})
    # What is text goes last, and takes no width from the others.
    texts = ("kinds", "parts", "skipped")
    columns = dict.fromkeys(key for row in table for key in row if key not in texts)
    width = {key: max(len(key), *(len(row.get(key, "")) for row in table)) for key in columns}
    for row in [{key: key for key in columns}, *table]:
        cells = [row.get(key, "").rjust(width[key]) for key in columns]
        print("  ".join([*cells, *(row[key] for key in texts if key in row)]).rstrip(), flush=True)
