"""Training text-to-image networks on many GPUs: bytes, time on the wire and memory, computed.

    python benchmarks/scaling.py                                  # SD 1.5 and SDXL, 8 and 64 GPUs
    python benchmarks/scaling.py --preset sd15 --gpus 16 --json out.json

Nothing here was measured on several GPUs. What is known and what is assumed:

    bytes       ring collectives, as counted on the wire at 2 and 4 processes by communication.py
                (a test holds this model to those figures), without headers
    buckets     those of `GradientReducer`, filled in the order in which a backward pass of the
                network completes its gradients (overlap.py, on fake tensors)
    links       LINKS, at their full rate, without latency
    a GPU       FLOPS_PER_S, without a pause; elementwise work and optimizers take no time
    memory      the computed single-GPU peaks of memory.py, plus the buckets

So every time is the least there can be on such links. What makes it longer: latency (each of the
2 (N-1) legs of a ring costs some microseconds for every bucket), protocols, other traffic.

An iteration of the method calls networks in this order; "score" is a network with guidance:

    pseudo-score phase   generator forward; score forward and backward, psi's gradients are summed
    generator phase      generator forward; teacher and psi forward, and backward to their input;
                         generator backward, theta's gradients are summed
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, machine, write_results
from overlap import Passes, buckets_of, count_passes, ring_bytes, sums_arrive
from presets import shapes

__all__ = ["LINKS", "WAYS", "MemoryRow", "TrafficRow", "Way", "main", "sharded_bytes"]

LINKS = {"NVLink 4": 450e9, "400 Gb/s": 50e9, "25 Gb/s": 25e9 / 8}
"""Name -> bytes a second, each way, where the ring is narrowest: between two GPUs of a node, or
between two nodes with one such card each."""

FLOPS_PER_S = 0.4 * 989e12
"""40 % of the dense bf16 peak in the data sheet of an H100 SXM: an assumption."""

IMAGES = 2  # of a GPU: one to keep, one to forget
BF16, FP32 = 2, 4  # bytes
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of the weights


@dataclass(frozen=True)
class Way:
    """A way to share an iteration.

    Attributes:
        name: as the tables call it.
        pseudo_score: density of the mask on psi. None: no mask.
        generator: density of the mask on theta. None: no mask.
        sharded: `fully_shard`: no GPU has a whole network.
    """

    name: str
    pseudo_score: float | None = None
    generator: float | None = None
    sharded: bool = False


WAYS = (
    Way("DistributedDataParallel"),
    Way("mask on the generator", generator=0.1),
    Way("mask on both", pseudo_score=0.1, generator=0.1),
    Way("fully_shard, no mask", sharded=True),
)


@dataclass
class TrafficRow:
    """What an iteration sends. Bytes and times are of one GPU."""

    preset: str
    parameters: int
    precision: str  # of the weights: "fp32", where autocast computes in bf16, or "bf16"
    gpus: int
    way: str
    payload_bytes: int | None  # what its buckets hold; None where weights are sent as well
    sent_bytes: int
    share_of_ddp: float
    compute_ms: float  # of the iteration, at FLOPS_PER_S
    wire_ms: dict[str, float]  # link -> at its full rate
    exposed_ms: dict[str, float]  # link -> of that, at least, while nothing is computed
    # Shares of psi's backward pass until something is sent: as it is, and if buckets went in the
    # order of registration.
    first_sent: float | None = None
    first_sent_as_registered: float | None = None


@dataclass
class MemoryRow:
    """The peak of one GPU, with one image of each kind."""

    preset: str
    way: str
    layout: str  # of memory.py, where the parts come from
    gpus: int | None  # None: any number
    peak_bytes: int
    optimizer_bytes: int  # moments and fp32 masters
    parts: dict[str, int] = field(default_factory=dict)


# ---- what is sent


def sharded_bytes(
    parameters: int, gpus: int, gathers: int, scatters: int, gathered: int, scattered: int
) -> float:
    """What a GPU sends of a sharded network: (N-1)/N of it for each collective.

    Args:
        parameters: of the network.
        gpus: N.
        gathers: times that its weights are collected.
        scatters: times that its gradients are summed and dealt out.
        gathered: bytes of a weight on the wire.
        scattered: bytes of a gradient on the wire.
    """
    return (gpus - 1) / gpus * parameters * (gathers * gathered + scatters * scattered)


# Forward and backward passes gather anew (reshard_after_forward): psi 2 + 2, theta 1 + 2, phi 2.
_GATHERS, _SCATTERS = 9, 2


def _compute_flops(passes: Mapping[str, Passes]) -> int:
    """An iteration without shortcuts, see above."""
    score, generator = passes["score"], passes["generator"]
    forward = 2 * generator.forward + 3 * score.forward
    return forward + score.backward + 2 * score.through + generator.backward


@dataclass(frozen=True)
class _Sent:
    """What a GPU sends in an iteration, and for how long it waits for it, by link."""

    sent: float
    waits: dict[str, float]  # seconds
    payload: int | None = None
    first: float | None = None
    first_as_registered: float | None = None


def _summed(
    passes: Mapping[str, Passes],
    of: Mapping[str, torch.Size],
    dtype: torch.dtype,
    way: Way,
    gpus: int,
) -> _Sent:
    """Every GPU has whole networks: gradients are summed in buckets, each in its phase."""
    score, generator = passes["score"], passes["generator"]
    phases = [
        (score, buckets_of(of, dtype, way.pseudo_score, score.complete)),
        (generator, buckets_of(of, dtype, way.generator, generator.complete)),
    ]
    payload = sum(bucket.size for _, buckets in phases for bucket in buckets)

    def waits(rate: float) -> float:
        return sum(
            max(0.0, sums_arrive(buckets, gpus, rate, FLOPS_PER_S) - one.backward / FLOPS_PER_S)
            for one, buckets in phases
        )

    registered = buckets_of(of, dtype, way.pseudo_score, score.complete, as_registered=True)
    return _Sent(
        ring_bytes(payload, gpus),
        {name: waits(rate) for name, rate in LINKS.items()},
        payload,
        phases[0][1][0].ready / score.backward,
        registered[0].ready / score.backward,
    )


def _sharded(passes: Mapping[str, Passes], parameters: int, dtype: torch.dtype, gpus: int) -> _Sent:
    """No GPU has a whole network. Weights are gathered in bf16, gradients summed as weights are."""
    sent = sharded_bytes(parameters, gpus, _GATHERS, _SCATTERS, BF16, dtype.itemsize)
    computing = _compute_flops(passes) / FLOPS_PER_S
    return _Sent(sent, {name: max(0.0, sent / rate - computing) for name, rate in LINKS.items()})


def traffic(preset: str, gpu_counts: Sequence[int]) -> Iterator[TrafficRow]:
    """All ways to share an iteration of a preset, for every number of GPUs and precision."""
    of = shapes(preset)
    parameters = sum(shape.numel() for shape in of.values())
    passes = count_passes(preset, IMAGES)
    for (precision, dtype), gpus, way in product(_PRECISIONS.items(), gpu_counts, WAYS):
        if way.sharded:
            found = _sharded(passes, parameters, dtype, gpus)
        else:
            found = _summed(passes, of, dtype, way, gpus)
        yield TrafficRow(
            preset,
            parameters,
            precision,
            gpus,
            way.name,
            found.payload,
            round(found.sent),
            found.sent / ring_bytes(2 * parameters * dtype.itemsize, gpus),
            1e3 * _compute_flops(passes) / FLOPS_PER_S,
            {name: 1e3 * found.sent / rate for name, rate in LINKS.items()},
            {name: 1e3 * wait for name, wait in found.waits.items()},
            found.first,
            found.first_as_registered,
        )


# ---- memory

_STATE = ("optimizer state", "fp32 masters")
# Way -> layout of memory.py. One image at a time everywhere, as the published loop does it.
_LAYOUTS = {
    "DistributedDataParallel": "as published",
    "mask on the generator": "three networks, one image at a time",
    "mask on both": "one set, released, one image",
    "mask on both, bf16": "one set, bf16, released, one image",
}


def memory(preset: str, gpu_counts: Sequence[int], single: Any) -> Iterator[MemoryRow]:
    """The peaks of a preset.

    Args:
        preset: its name.
        gpu_counts: numbers of GPUs, which matter where networks are sharded.
        single: rows of memory.py's result file.
    """
    of = shapes(preset)
    parameters = sum(shape.numel() for shape in of.values())
    peaks = {row["layout"]: row for row in single if row["preset"] == preset}
    for way, layout in _LAYOUTS.items():
        row = peaks[layout]
        parts = dict(row["parts"])
        nnz = sum(max(1, round(row["density"] * shape.numel())) for shape in of.values())
        if way == "DistributedDataParallel":  # its buckets, beside the gradients
            parts["buckets"] = 2 * FP32 * parameters
        elif way == "mask on the generator":
            parts["buckets"] = FP32 * (parameters + nnz)
        else:  # salient gradients of both networks live in the buckets, and nowhere else
            parts.pop("gradients", None)
            parts["buckets"] = 2 * FP32 * nnz
        yield _memory_row(preset, way, layout, None, parts)
    row = peaks["as published"]
    for gpus in gpu_counts:
        parts = {kind: -(-size // gpus) for kind, size in row["parts"].items()}
        activations = "activations and temporaries"
        parts[activations] = row["parts"][activations]
        # What is gathered takes the place of autocast's copies: a block, and the next one ahead.
        del parts["bf16 copies of weights"], parts["positions of the mask"]
        parts["gathered weights"] = 2 * BF16 * largest_block(of)
        yield _memory_row(preset, "fully_shard, no mask", "as published", gpus, parts)


def _memory_row(
    preset: str, way: str, layout: str, gpus: int | None, parts: dict[str, int]
) -> MemoryRow:
    state = sum(parts.get(kind, 0) for kind in _STATE)
    ordered = dict(sorted(parts.items(), key=lambda item: -item[1]))
    return MemoryRow(preset, way, layout, gpus, sum(parts.values()), state, ordered)


# A transformer block, or else a residual block, a resampling convolution, ...
_BLOCK = re.compile(r"(.*?transformer_blocks\.\d+|\w+\.\d+\.\w+\.\d+|mid_block\.\w+\.\d+)\.")


def largest_block(of: Mapping[str, torch.Size]) -> int:
    """Parameters of the largest block that is worth gathering by itself."""
    sizes: Counter[str] = Counter()
    for name, shape in of.items():
        found = _BLOCK.match(name)
        sizes[found[1] if found else "the rest"] += shape.numel()
    return max(sizes.values())


# ---- command line


def print_traffic(row: TrafficRow) -> None:
    """One line: bytes, then each link's time and how much of it is exposed."""
    links = ", ".join(
        f"{name} {row.wire_ms[name]:.0f} ms ({row.exposed_ms[name]:.0f} exposed)" for name in LINKS
    )
    print(
        f"  {row.preset} {row.precision} on {row.gpus:2} GPUs, {row.way:24} sends "
        f"{row.sent_bytes / 1e9:6.2f} GB, {row.share_of_ddp:4.0%} of DDP; "
        f"computes {row.compute_ms:.0f} ms; {links}",
        flush=True,
    )


def print_memory(row: MemoryRow) -> None:
    """One line: the peak, the optimizers' part of it, all parts."""
    gpus = "any number of" if row.gpus is None else row.gpus
    parts = ", ".join(f"{kind} {size / 2**30:.2f}" for kind, size in row.parts.items())
    print(
        f"  {row.preset} on {gpus} GPUs, {row.way:24} {row.peak_bytes / 2**30:6.2f} GiB, "
        f"optimizers {row.optimizer_bytes / 2**30:.2f}: {parts}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", nargs="+", choices=["sd15", "sdxl"], default=["sd15", "sdxl"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64])
    parser.add_argument(
        "--memory", type=Path, default=RESULTS / "memory-cpu.json", help="written by memory.py"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args(argv)
    single = json.loads(arguments.memory.read_text())["rows"]
    rows: list[TrafficRow | MemoryRow] = []
    for preset in arguments.preset:
        for sent in traffic(preset, arguments.gpus):
            print_traffic(sent)
            rows.append(sent)
        for held in memory(preset, arguments.gpus, single):
            print_memory(held)
            rows.append(held)
    if arguments.json:
        assumed = {"links": LINKS, "flops_per_s": FLOPS_PER_S, "images": IMAGES}
        result = {
            "machine": machine(),
            "assumed": assumed,
            "rows": [asdict(row) for row in rows],
        }
        write_results(arguments.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
