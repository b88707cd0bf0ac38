"""Exact global top-k over the saliency scores of a network: ours against what people run today.

    python benchmarks/topk.py                       # CIFAR-10 DDPM shapes, five minutes
    python benchmarks/topk.py --preset tiny         # seconds

Every provider's selection is compared with the reference (one stable sort) on that very input
before it is timed; one that selects other scores gets no time. torch.topk and SalUn's argsort
promise no order among equal scores, so theirs may differ from the reference there ("ties").

GB/s counts what any selection must move: each score read once, each position written once. The
share is that of the copy bandwidth measured in the same process.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import copy_bandwidth, machine, peak_memory, time_ms, write_results
from presets import PRESETS, shapes
from torch import Tensor

from pecker_fast import backends

RESULTS = Path(__file__).parent / "results" / "topk-cpu.json"
REFERENCE = "torch.sort"
DENSITIES = (0.5, 0.1, 0.01)


def random_scores(preset: str, distribution: str) -> list[Tensor]:
    """|gradient|-like scores: "normal", or "heavy" with a log-normal scale per output channel."""
    generator = torch.Generator().manual_seed(0)
    scores = []
    for shape in shapes(preset).values():
        score = torch.randn(shape, generator=generator).abs_()
        if distribution == "heavy" and len(shape) > 1:
            scale = torch.randn(shape[0], generator=generator).mul_(2).exp_()
            score *= scale.view(-1, *[1] * (len(shape) - 1))
        scores.append(score)
    return scores


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


PROVIDERS: dict[str, Callable[[Sequence[Tensor], int], object]] = {
    "torch.topk": torch_topk,
    "salun_double_argsort": salun,
    REFERENCE: backends.select("reference", "cpu").select_topk,
}
if backends.available()["cpu"] is None:
    PROVIDERS["pecker_fast cpu"] = backends.select("cpu", "cpu").select_topk


def flat_selection(provider: str, selection: object, scores: Sequence[Tensor]) -> Tensor:
    """Any provider's selection as a bool tensor over the concatenation."""
    numel = sum(score.numel() for score in scores)
    if isinstance(selection, Tensor):
        return torch.zeros(numel, dtype=torch.bool).index_fill_(0, selection, True)
    if provider.startswith("salun"):
        return torch.cat([mask.flatten() for mask in selection]).bool()
    dense = [
        torch.zeros(score.numel(), dtype=torch.bool).index_fill_(0, positions.long(), True)
        for score, positions in zip(scores, selection, strict=True)
    ]
    return torch.cat(dense)


def agreement(provider: str, found: Tensor, expected: Tensor, scores: Sequence[Tensor]) -> str:
    """How a selection compares with the reference's.

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


def measure(
    scores: Sequence[Tensor],
    density: float,
    providers: Sequence[str],
    rounds: int,
    seconds: float,
    copy_gb_per_s: float,
) -> list[dict[str, Any]]:
    """One row per provider: the gate, and times if it is passed.

    Providers take turns, `rounds` times, so that all of them see the same load of the machine.
    """
    numel = sum(score.numel() for score in scores)
    k = max(1, round(density * numel))
    expected = flat_selection(REFERENCE, PROVIDERS[REFERENCE](scores, k), scores)
    moved = 4 * numel + 4 * k
    rows: dict[str, dict[str, Any]] = {}
    for provider in providers:
        selection, extra_bytes = peak_memory(lambda p=provider: PROVIDERS[p](scores, k))
        found = flat_selection(provider, selection, scores)
        rows[provider] = {
            "density": density,
            "provider": provider,
            "match": agreement(provider, found, expected, scores),
            # The selection itself is counted: 4 bytes an entry in ours, 8 in the others'.
            "peak_extra_bytes": extra_bytes if numel >= 10_000_000 else None,
        }
        del selection
    times: dict[str, list[float]] = {p: [] for p, row in rows.items() if row["match"] != "WRONG"}
    for _ in range(rounds):
        for provider, taken in times.items():
            taken += time_ms(lambda p=provider: PROVIDERS[p](scores, k), 1, seconds)
    medians = {provider: statistics.median(taken) for provider, taken in times.items()}
    for provider, taken in times.items():
        gb_per_s = moved / medians[provider] / 1e6
        rows[provider] |= {
            "ms_min": round(min(taken), 2),
            "ms_median": round(medians[provider], 2),
            "runs": len(taken),
            "bytes": moved,
            "gb_per_s": round(gb_per_s, 2),
            "share_of_copy": round(gb_per_s / copy_gb_per_s, 3),
        }
        if provider.startswith("pecker_fast"):
            rows[provider]["speedup"] = {
                other: round(median / medians[provider], 1)
                for other, median in medians.items()
                if other != provider
            }
    return list(rows.values())


def print_row(row: dict[str, Any]) -> None:
    """One line of the table on the terminal."""
    line = f"{row['scores']:7} {row['density']:<5} {row['provider']:24} {row['match']:6}"
    if "ms_min" in row:
        extra = row["peak_extra_bytes"]
        line += (
            f"{row['ms_min']:10.2f} {row['ms_median']:10.2f} {row['gb_per_s']:7.2f}"
            f" {row['share_of_copy']:7.1%} {'' if extra is None else f'{extra / 2**20:,.0f}':>8}"
        )
    if "speedup" in row:
        line += "   " + ", ".join(f"{x} x {name}" for name, x in row["speedup"].items())
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="ddpm_cifar10")
    parser.add_argument("--density", type=float, action="append", help="default: .5 .1 .01")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--provider", action="append", choices=sorted(PROVIDERS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of every provider")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn, at least")
    parser.add_argument("--json", type=Path, help=f"write the rows there, e.g. {RESULTS}")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)

    about = machine() | {"copy_gb_per_s": round(copy_bandwidth(), 1)}
    print(json.dumps(about))
    print(
        f"scores  dens. {'provider':24} match      min ms  median ms    GB/s  % copy peak MiB"
        "   speed-up"
    )
    rows: list[dict[str, Any]] = []
    for distribution in ("normal", "heavy"):
        scores = random_scores(arguments.preset, distribution)
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
                arguments.provider or list(PROVIDERS),
                arguments.rounds,
                arguments.seconds,
                about["copy_gb_per_s"],
            )
            for row in measured:
                rows.append(about_scores | row)
                print_row(rows[-1])
    if arguments.json:
        write_results(arguments.json, {"machine": about, "rows": rows})
    if any(row["match"] == "WRONG" for row in rows):
        print("WRONG: other scores than the reference selects, so not timed")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
