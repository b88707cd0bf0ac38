"""Time of one optimizer step: MaskedAdamW beside what people run today, in one process.

    python benchmarks/step_time.py                               # CIFAR-10 DDPM, fp32, CPU
    python benchmarks/step_time.py --device cuda --preset sd15 sdxl --dtype float32 bfloat16
    python benchmarks/step_time.py --preset tiny --densities 0.5 --repeats 5 --json out.json

Every row of ours is first checked: three steps on that very input must agree with the reference,
and every frozen entry must keep its bits. A row that fails is printed without a time, and the exit
code is 1. A baseline that does not fit in memory gets a row that says so.

On the CPU providers take turns, so none finds its data in a cache and all see the same load. On a
GPU one is built, measured and freed after the other; the gradients are new tensors at every call,
as after a backward pass. See timing.py for how the clocks are read.

Masks: "random" makes every entry salient with equal probability; "heavy" multiplies random
scores by a log-normal scale per row (sigma 2) and takes the global top-k, which touches about as
few cache lines as real saliency does.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from inputs import Case, bytes_floor, make_case, one_tensor, touched_lines
from measure import machine, write_results
from presets import PRESETS
from providers import Builder, NotApplicable, Provider, baselines, checked_ours, usable_backends
from timing import GpuTimer, Timing, bandwidth, in_turns

from pecker_fast.errors import PeckerError


@dataclass
class Row:
    """One provider on one mask."""

    preset: str
    dtype: str
    mask: str  # none, random or heavy
    density: float
    beta1: float
    layout: str  # "model", or "one tensor": the same entries and lines in a single parameter
    lines: float  # share of the parameters' 64-byte lines that hold a salient entry
    provider: str
    match: bool | None = None  # agrees with the reference; None: a baseline that is torch's own
    skipped: str | None = None  # why there is no time
    p50_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    host_us: float | None = None  # until step() returns, new gradient tensors included; GPU only
    wall_ms: float | None = None  # of a step on an idle GPU, launches included
    bytes_moved: int | None = None  # the least that this provider must move
    gb_per_s: float | None = None
    roof_share: float | None = None  # of the bandwidth measured in this process
    floor_bytes: int | None = None  # the least that any masked step with compact state must move
    floor_ms: float | None = None
    floor_share: float | None = None  # floor_ms / p50_ms
    state_bytes: int | None = None
    mask_bytes: int | None = None  # positions, masks, copies to restore from
    vs_torch_fused: float | None = None
    vs_torch_foreach: float | None = None
    vs_gradmask: float | None = None  # speed-up over `grad *= mask` (bool) + fused AdamW
    vs_gradmask_int64: float | None = None
    vs_gradmask_foreach: float | None = None
    vs_restore: float | None = None  # over the one baseline that really freezes
    times_one_tensor: float | None = None  # time over that of the same step in one tensor


_SPEED_UPS = {
    "vs_torch_fused": "torch_fused",
    "vs_torch_foreach": "torch_foreach",
    "vs_gradmask": "gradmask_fused",
    "vs_gradmask_int64": "gradmask_int64_fused",
    "vs_gradmask_foreach": "gradmask_foreach_fused",
    "vs_restore": "gradmask_fused_restore",
}


@dataclass(frozen=True)
class Setup:
    """What all cases of a run have in common."""

    device: str
    backends: Sequence[str]
    repeats: int
    roof_gb_per_s: float
    timer: GpuTimer | None = None  # None: on the CPU, in turns


@dataclass
class Outcome:
    """What became of one provider. It keeps no tensor alive."""

    provider: Provider | None = None
    timing: Timing | None = None
    skipped: str | None = None


def run_case(setup: Setup, case: Case, with_one_tensor: bool = False) -> list[Row]:
    """Check, then time every provider on one mask.

    Args:
        setup: where and how.
        case: parameters and mask. The caller keeps no other reference to it, so that its memory is
            free for the single tensor.
        with_one_tensor: also measure ours on the same step in one tensor.
    """
    builders = {_label(name): partial(checked_ours, case, name) for name in setup.backends}
    builders |= baselines(case)
    if setup.timer is not None:
        builders |= peers.builders(case)
    rows = _rows(setup, case, _measure(setup, case, builders))
    if with_one_tensor:
        joined = one_tensor(case)
        del case
        builders = {_label(name): partial(checked_ours, joined, name) for name in setup.backends}
        single = _rows(setup, joined, _measure(setup, joined, builders))
        for row in single:
            many = next(other for other in rows if other.provider == row.provider)
            if row.p50_ms and many.p50_ms:
                many.times_one_tensor = many.p50_ms / row.p50_ms
        rows += single
    return rows


def _label(backend: str) -> str:
    return f"pecker_fast[{backend}]"


def _measure(setup: Setup, case: Case, builders: dict[str, Builder]) -> dict[str, Outcome]:
    """What became of each. On a GPU `builders` is empty afterwards, and their memory free."""
    if setup.timer is not None:
        outcomes = {}
        for name in list(builders):
            outcomes[name] = _measure_one(setup, case, builders.pop(name))
            gc.collect()
            torch.cuda.empty_cache()
        return outcomes
    outcomes = {name: _build(build) for name, build in builders.items()}
    steps = {name: o.provider.step for name, o in outcomes.items() if _to_be_timed(o)}
    for name, timing in in_turns(steps, setup.repeats).items():
        outcomes[name].timing = timing
    return outcomes


def _measure_one(setup: Setup, case: Case, build: Builder) -> Outcome:
    """Build, time and let go, so that the next one has the memory."""
    outcome = _build(build)
    if _to_be_timed(outcome):
        try:
            outcome.timing = setup.timer.measure(
                outcome.provider.step, setup.repeats, case.fresh_grads
            )
        except torch.OutOfMemoryError as error:
            return Outcome(skipped=_out_of_memory(error))
    if outcome.provider is not None:
        outcome.provider.step = None
    return outcome


def _build(build: Builder) -> Outcome:
    try:
        return Outcome(build())
    except NotApplicable as reason:
        return Outcome(skipped=str(reason))
    except torch.OutOfMemoryError as error:
        return Outcome(skipped=_out_of_memory(error))


def _to_be_timed(outcome: Outcome) -> bool:
    return outcome.provider is not None and outcome.provider.match is not False


def _out_of_memory(error: torch.OutOfMemoryError) -> str:
    # "CUDA out of memory. Tried to allocate 9.56 GiB. GPU 0 has ..."
    return ". ".join(str(error).split(". ")[:2])


def _rows(setup: Setup, case: Case, outcomes: Mapping[str, Outcome]) -> list[Row]:
    touched, total = touched_lines(case)
    floor_bytes = bytes_floor(case)
    floor_ms = floor_bytes / setup.roof_gb_per_s / 1e6
    median = {name: o.timing.p50 for name, o in outcomes.items() if o.timing is not None}
    rows = []
    for name, outcome in outcomes.items():
        row = Row(
            case.preset, str(case.dtype).removeprefix("torch."), case.mask, case.density,
            case.beta1, case.layout, touched / total, name, skipped=outcome.skipped,
        )  # fmt: skip
        rows.append(row)
        provider, timing = outcome.provider, outcome.timing
        if provider is None:
            continue
        row.match = provider.match
        if provider.match is False:
            row.skipped = "its result is wrong"
        if timing is None:
            continue
        row.p50_ms, (row.p20_ms, row.p80_ms) = timing.p50, timing.p20_p80
        row.host_us, row.wall_ms = timing.host_us, timing.wall_ms
        row.bytes_moved = provider.bytes_moved
        row.gb_per_s = provider.bytes_moved / timing.p50 / 1e6
        row.roof_share = row.gb_per_s / setup.roof_gb_per_s
        row.floor_bytes, row.floor_ms = floor_bytes, floor_ms
        row.floor_share = floor_ms / timing.p50
        row.state_bytes, row.mask_bytes = provider.state_bytes, provider.mask_bytes
        for field, other in _SPEED_UPS.items():
            if other in median:
                setattr(row, field, median[other] / timing.p50)
    return rows


# ---- output

_COLUMNS = (
    ("preset", "preset", "{}"),
    ("dtype", "dtype", "{}"),
    ("mask", "mask", "{}"),
    ("density", "density", "{:g}"),
    ("lines", "lines", "{:.3f}"),
    ("provider", "provider", "{}"),
    ("layout", "layout", "{}"),
    ("p50_ms", "ms", "{:.3f}"),
    ("p20_ms", "p20", "{:.3f}"),
    ("p80_ms", "p80", "{:.3f}"),
    ("host_us", "host us", "{:.0f}"),
    ("wall_ms", "wall ms", "{:.3f}"),
    ("bytes_moved", "MB", "{:.0f}"),
    ("gb_per_s", "GB/s", "{:.1f}"),
    ("roof_share", "of roof", "{:.0%}"),
    ("floor_ms", "floor ms", "{:.3f}"),
    ("floor_share", "of floor", "{:.0%}"),
    ("state_bytes", "state MB", "{:.0f}"),
    ("mask_bytes", "mask MB", "{:.0f}"),
    ("vs_torch_fused", "x fused", "{:.2f}"),
    ("vs_torch_foreach", "x foreach", "{:.2f}"),
    ("vs_gradmask", "x gradmask", "{:.2f}"),
    ("vs_gradmask_int64", "x int64", "{:.2f}"),
    ("vs_restore", "x restore", "{:.2f}"),
    ("times_one_tensor", "of one tensor", "{:.2f}"),
    ("match", "match", "{}"),
    ("skipped", "", "{}"),
)


def print_table(rows: Sequence[Row]) -> None:
    """All rows, one line each; columns that are empty throughout are left out."""
    columns = [c for c in _COLUMNS if any(getattr(row, c[0]) is not None for row in rows)]
    lines = [[title for _, title, _ in columns]]
    for row in rows:
        cells = []
        for field, _, form in columns:
            value = getattr(row, field)
            if "bytes" in field and value is not None:
                value /= 1e6
            cells.append("" if value is None else form.format(value))
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def start(device: str, requested: list[str] | None, repeats: int) -> tuple[Setup, dict[str, Any]]:
    """Measure the bandwidth; the setup and what to say about the machine.

    Raises:
        PeckerError: a backend that was asked for cannot be used on the device.
    """
    names = usable_backends(requested, device)
    timer = GpuTimer(device) if torch.device(device).type == "cuda" else None
    gb_per_s = bandwidth(timer, device)
    about = machine(device) | gb_per_s
    if timer is not None:
        about["absent_peers"] = peers.absent()
    return Setup(device, names, repeats, gb_per_s["roof_gb_per_s"], timer), about


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    dtypes = ["float32", "bfloat16", "float16"]
    masks = ["random", "heavy"]
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["ddpm_cifar10"])
    parser.add_argument("--densities", type=float, nargs="*", default=[0.5, 0.1, 0.01])
    parser.add_argument("--masks", nargs="*", choices=masks, default=masks)
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=["float32"])
    parser.add_argument("--beta1", type=float, default=0.9, help="0: as published for SFD")
    parser.add_argument("--backend", nargs="+", help="default: every one for the device")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one-tensor", action="store_true", help="also the step in one tensor")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parsed(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        setup, about = start(arguments.device, arguments.backend, arguments.repeats)
    except PeckerError as error:
        print(f"step_time.py: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)

    masks = [("none", 1.0)]
    masks += [(kind, density) for kind in arguments.masks for density in arguments.densities]
    rows: list[Row] = []
    for preset in arguments.preset:
        for name in arguments.dtype:
            dtype = getattr(torch, name)
            for kind, density in masks:
                inputs = (preset, dtype, kind, density, arguments.device, arguments.beta1)
                rows += run_case(setup, make_case(*inputs), arguments.one_tensor)
                print(f"  {preset} {name} {kind} {density:g} done", file=sys.stderr)
                if arguments.json:  # after every case: the whole may take long
                    result = {"machine": about, "rows": [asdict(row) for row in rows]}
                    write_results(arguments.json, result)
    print_table(rows)
    return 0 if all(row.match is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
