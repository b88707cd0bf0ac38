"""Exact global top-k over the saliency scores of a network: ours against what people run today.

    python benchmarks/topk.py                       # CIFAR-10 DDPM shapes, five minutes
    python benchmarks/topk.py --preset tiny         # seconds
    python benchmarks/topk.py --device cuda --preset sd15

Every provider's selection is compared with an independent one (threshold, then ties by position) on
that very input before it is timed; one that selects other scores gets no time. torch.topk and
SalUn's argsort promise no order among equal scores, so theirs may differ there ("ties").

GB/s counts what any selection must move: each score read once, each position written once. The
share is that of the copy bandwidth measured in the same process; the floor is one read of the
scores. Peak memory is what a first call allocates, the selection itself included (4 bytes an entry
in ours, 8 in the others'); beside it the same without the selection.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from inputs import random_scores
from measure import RESULTS, machine, peak_memory, write_results
from presets import PRESETS, shapes
from providers import nbytes, usable_backends
from timing import GpuTimer, bandwidth, time_ms
from torch import Tensor

from pecker_fast import backends
from pecker_fast.errors import PeckerError

REFERENCE = "torch.sort"
DENSITIES = (0.5, 0.1, 0.01)
Select = Callable[[Sequence[Tensor], int], Any]


def make_scores(preset: str, distribution: str, device: str) -> list[Tensor]:
    """Scores of every parameter, "normal" or "heavy", made on the device from a fixed seed."""
    generator = torch.Generator(device).manual_seed(0)
    return [random_scores(shape, distribution, generator) for shape in shapes(preset).values()]


# What is timed: from the scores to the selection each of them makes.


def torch_topk(scores: Sequence[Tensor], k: int) -> Tensor:
    """Positions in the concatenation, unordered. Splitting them by parameter is not counted."""
    return torch.topk(torch.cat([score.flatten() for score in scores]), k, sorted=False).indices


def salun(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Unlearn-Saliency's mask: ranks by two argsorts of everything, then int64 0/1 tensors."""
    everything = -torch.cat([score.flatten() for score in scores])
    ranks = torch.argsort(torch.argsort(everything))
    masks, start = [], 0
    for score in scores:
        part = ranks[start : start + score.numel()]
        mask = torch.zeros_like(part)
        mask[part < k] = 1
        masks.append(mask.reshape(score.shape))
        start += score.numel()
    return masks


def make_providers(device: str, requested: list[str] | None = None) -> dict[str, Select]:
    """Name -> selection: the baselines, the reference, and ours on every backend asked for."""
    providers: dict[str, Select] = {
        "torch.topk": torch_topk,
        "salun_double_argsort": salun,
        REFERENCE: backends.select("reference", device).select_topk,
    }
    for name in usable_backends(requested, device):
        if name != "reference":
            providers[f"pecker_fast {name}"] = backends.select(name, device).select_topk
    return providers


# Whether it is right.


def exact_selection(scores: Sequence[Tensor], k: int) -> Tensor:
    """What must be selected, as a bool tensor over the concatenation.

    All scores above the k-th largest; of those equal to it the first ones.
    """
    everything = torch.cat([score.flatten() for score in scores])
    threshold = torch.topk(everything, k, sorted=False).values.min()
    selected = everything > threshold
    equal = (everything == threshold).nonzero().flatten()
    selected[equal[: k - int(selected.sum())]] = True
    return selected


def flat_selection(provider: str, selection: Any, scores: Sequence[Tensor]) -> Tensor:
    """Any provider's selection as a bool tensor over the concatenation."""
    device = scores[0].device
    if isinstance(selection, Tensor):
        numel = sum(score.numel() for score in scores)
        dense = torch.zeros(numel, dtype=torch.bool, device=device)
        return dense.index_fill_(0, selection, True)
    if provider.startswith("salun"):
        return torch.cat([mask.flatten().bool() for mask in selection])
    parts = [
        torch.zeros(score.numel(), dtype=torch.bool, device=device).index_fill_(
            0, positions.long(), True
        )
        for score, positions in zip(scores, selection, strict=True)
    ]
    return torch.cat(parts)


def agreement(provider: str, found: Tensor, expected: Tensor, scores: Sequence[Tensor]) -> str:
    """How a selection compares with the right one.

    Returns:
        "exact"; "ties" (the same scores, other positions among equal ones), which only baselines
        may have; or "WRONG".
    """
    if torch.equal(found, expected):
        return "exact"
    everything = torch.cat([score.flatten() for score in scores])
    only_found, only_expected = everything[found & ~expected], everything[expected & ~found]
    same = torch.equal(only_found.sort().values, only_expected.sort().values)
    return "ties" if same and not provider.startswith("pecker_fast") else "WRONG"


# The measurement.


def check(
    scores: Sequence[Tensor], k: int, provider: str, select: Select, expected: Tensor, device: str
) -> dict[str, Any]:
    """The gate and the memory of one provider, in a first call.

    Returns:
        "match", and bytes; or "skipped" with the reason where a baseline does not fit in memory.
    """
    try:
        selection, peak = peak_memory(lambda: select(scores, k), device)
    except torch.OutOfMemoryError as error:
        if provider.startswith("pecker_fast"):
            raise
        return {"match": None, "skipped": ". ".join(str(error).split(". ")[:2])}
    result = nbytes([selection] if isinstance(selection, Tensor) else selection)
    found = flat_selection(provider, selection, scores)
    row: dict[str, Any] = {"match": agreement(provider, found, expected, scores)}
    if device == "cpu" and found.numel() < 10_000_000:
        peak = None  # resident memory says nothing about so little
    return row | {
        "peak_extra_bytes": peak,
        "extra_bytes_without_result": None if peak is None else max(0, peak - result),
    }


def measure(
    scores: Sequence[Tensor],
    density: float,
    providers: Mapping[str, Select],
    rounds: int,
    seconds: float,
    copy_gb_per_s: float,
    timer: GpuTimer | None = None,
) -> list[dict[str, Any]]:
    """One row per provider: the gate, and times if it is passed.

    Args:
        scores: the input.
        density: k over the number of scores.
        providers: what to measure.
        rounds: on the CPU providers take turns that often, so that all see the same load of the
            machine; on a GPU each is called that often.
        seconds: length of a turn on the CPU, at least.
        copy_gb_per_s: of this machine, measured in this process.
        timer: for a GPU; None on the CPU.
    """
    numel = sum(score.numel() for score in scores)
    k = max(1, round(density * numel))
    device = str(scores[0].device)
    expected = exact_selection(scores, k)
    rows = {}
    for provider, select in providers.items():
        row = {"density": density, "provider": provider}
        rows[provider] = row | check(scores, k, provider, select, expected, device)
        _release(timer)
    del expected
    calls = {
        provider: partial(providers[provider], scores, k)
        for provider, row in rows.items()
        if row["match"] in ("exact", "ties")
    }
    times: dict[str, list[float]] = {provider: [] for provider in calls}
    if timer is None:
        for _ in range(rounds):
            for provider, call in calls.items():
                times[provider] += time_ms(call, 1, seconds)
    else:
        for provider, call in calls.items():
            timing = timer.measure(call, rounds)
            times[provider] = timing.ms
            rows[provider] |= {"wall_ms": round(timing.wall_ms, 3)}
            _release(timer)
    _add_times(rows, times, moved=4 * numel + 4 * k, read=4 * numel, copy_gb_per_s=copy_gb_per_s)
    return list(rows.values())


def _release(timer: GpuTimer | None) -> None:
    """Give the next provider all of the memory of a GPU."""
    if timer is not None:
        gc.collect()
        torch.cuda.empty_cache()


def _add_times(
    rows: dict[str, dict[str, Any]],
    times: Mapping[str, list[float]],
    moved: int,
    read: int,
    copy_gb_per_s: float,
) -> None:
    medians = {provider: statistics.median(taken) for provider, taken in times.items()}
    floor_ms = read / copy_gb_per_s / 1e6
    for provider, taken in times.items():
        gb_per_s = moved / medians[provider] / 1e6
        rows[provider] |= {
            "ms_min": round(min(taken), 3),
            "ms_median": round(medians[provider], 3),
            "runs": len(taken),
            "bytes": moved,
            "gb_per_s": round(gb_per_s, 2),
            "share_of_copy": round(gb_per_s / copy_gb_per_s, 3),
            "floor_ms": round(floor_ms, 4),
            "floor_share": round(floor_ms / medians[provider], 3),
        }
        if provider.startswith("pecker_fast"):
            rows[provider]["speedup"] = {
                other: round(median / medians[provider], 1)
                for other, median in medians.items()
                if other != provider
            }


# Output.


def print_row(row: dict[str, Any]) -> None:
    """One line of the table on the terminal."""
    line = f"{row['scores']:7} {row['density']:<5} {row['provider']:24} {row['match'] or '-':6}"
    if "ms_min" in row:
        sizes = (row["peak_extra_bytes"], row["extra_bytes_without_result"])
        peak, extra = ("" if size is None else f"{size / 2**20:,.0f}" for size in sizes)
        line += (
            f"{row['ms_min']:10.2f} {row['ms_median']:10.2f} {row['gb_per_s']:8.2f}"
            f" {row['share_of_copy']:7.1%} {row['floor_share']:8.1%} {peak:>8} {extra:>8}"
        )
    if "speedup" in row:
        line += "   " + ", ".join(f"{x} x {name}" for name, x in row["speedup"].items())
    print(line + "  " + row.get("skipped", ""), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="ddpm_cifar10")
    parser.add_argument("--density", type=float, action="append", help="default: .5 .1 .01")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", nargs="+", help="default: every one for the device")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--provider", action="append", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, help="turns of every provider: 3, on a GPU 10")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn, at least")
    parser.add_argument("--json", type=Path, help=f"write the rows, e.g. to {RESULTS}")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    on_gpu = torch.device(arguments.device).type == "cuda"
    try:
        providers = make_providers(arguments.device, arguments.backend)
    except PeckerError as error:
        parser.error(str(error))
    if unknown := set(arguments.provider or ()) - providers.keys():
        parser.error(f"no provider {min(unknown)!r}: expected one of {', '.join(providers)}")
    if arguments.provider:
        providers = {name: providers[name] for name in arguments.provider}

    timer = GpuTimer(arguments.device) if on_gpu else None
    about = machine(arguments.device) | bandwidth(timer, arguments.device)
    print(json.dumps(about))
    print(
        f"scores  dens. {'provider':24} match      min ms  median ms     GB/s  % copy  % floor"
        " peak MiB  -result   speed-up"
    )
    rows: list[dict[str, Any]] = []
    for distribution in ("normal", "heavy"):
        scores = make_scores(arguments.preset, distribution, arguments.device)
        about_scores = {
            "preset": arguments.preset,
            "numel": sum(score.numel() for score in scores),
            "tensors": len(scores),
            "scores": distribution,
        }
        for density in arguments.density or DENSITIES:
            measured = measure(
                scores,
                density,
                providers,
                arguments.rounds or (10 if on_gpu else 3),
                arguments.seconds,
                about["copy_gb_per_s"],
                timer,
            )
            for row in measured:
                rows.append(about_scores | row)
                print_row(rows[-1])
            if arguments.json:  # after every case: the whole may take long
                write_results(arguments.json, {"machine": about, "rows": rows})
    if any(row["match"] == "WRONG" for row in rows):
        print("WRONG: other scores than it should select, so not timed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
