"""Bytes that processes send to each other in a training step: ours against torch's dense DDP.

    python benchmarks/communication.py                               # 2 and 4 processes, full size
    python benchmarks/communication.py --processes 2 --width 32 --image-size 8 --json out.json

The network is the published one for CIFAR-10. All processes run on this machine and talk through
gloo, in a network of their own (private_network.py): what its loopback device sends is all that
they send, with the headers of TCP and IP. Where there can be no such network, `wire_bytes` is null
and shares are of the payload, i.e. of what the buckets hold.

A step is a forward and a backward pass and the sums. Every row is checked first: each process's
sums against gradients that were added up in float64, to the rounding that adding up in float32
explains; frozen entries must still be the process's own. A row that fails has no figure, and the
exit code is 1. `iteration` rows are whole iterations of the trainer, both of its networks; they are
checked by their frozen entries and by the bits, which must be the same in all processes.

Times are of processes that share this machine's cores and copy through its memory. That is no
network: they say what a step costs beyond the sums, nothing about a cluster.

Predicted before the first run, P = 38.6 M parameters, N processes, ring all-reduce:

    DDP, and ours without a mask    2 (N-1)/N * 4 P    154.5 MB (N = 2), 231.8 MB (N = 4), + 0.2 %
    fully_shard                     3 (N-1)/N * 4 P = 150 %: weights twice, gradients once
    ours at density d               d of that: 50.0, 10.0 and 1.0 %; released gradients: the same
    iteration, mask on both at .1   10.0 % of two DDP steps
    iteration, on the generator     (1 + .1) / 2 = 55 %: the pseudo-score's gradient is dense
    time                            the sums are some 10 % of a step on two cores

Of fully_shard that was wrong: gloo scatters sums by way of an all-reduce, so over gloo it is 200 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch.multiprocessing
from exchanges import EXCHANGES, work
from measure import machine, write_results
from private_network import private_network
from timing import Timing
from trainer_exchanges import ITERATIONS
from wire_meter import Options, Outcome

__all__ = ["Row", "main", "measure", "print_rows"]

DDP = EXCHANGES[1].name
_DDP_STEPS = {"step": 1, "iteration": 2}  # what a row is compared with


@dataclass
class Row:
    """One way to sum gradients, in some number of processes. Bytes are of one process."""

    processes: int
    what: str  # step or iteration
    name: str
    density: float | None  # None: no mask
    releases: bool  # dense gradients are freed in the backward pass
    parameters: int
    match: bool
    payload_bytes: int  # what the buckets hold
    wire_bytes: int | None = None  # what it sends, headers included
    wire_of_ring: float | None = None  # over 2 (N-1)/N payloads, what a ring all-reduce must send
    share_of_ddp: float | None = None  # of one DDP step, of two for an iteration
    p50_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None


def measure(processes: int, options: Options, counted: bool) -> list[Row]:
    """All rows for a number of processes; run it inside of `private_network` if `counted`.

    Raises:
        ProcessRaisedException: One of the processes failed; its traceback is the message.
    """
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    running = torch.multiprocessing.start_processes(
        work, (processes, options, counted, queue), nprocs=processes, join=False
    )
    outcomes: list[Outcome] = []
    try:
        # Emptied while they run: a full pipe would stop them.
        while not running.join(timeout=0.1):
            while not queue.empty():
                outcomes.append(queue.get())
                print(f"  {outcomes[-1].name}: {outcomes[-1].ms[-1]:.0f} ms", file=sys.stderr)
    finally:
        for process in running.processes:
            process.kill()
    while not queue.empty():
        outcomes.append(queue.get())
    return list(_rows(processes, outcomes))


def _rows(processes: int, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Rounds become one row each, with shares of DDP's."""
    by_name: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault((outcome.what, outcome.name), []).append(outcome)
    dense: Row | None = None
    for (what, name), rounds in by_name.items():
        first = rounds[0]
        row = Row(
            processes,
            what,
            name,
            first.density,
            first.releases,
            first.parameters,
            all(one.match for one in rounds),
            first.payload_bytes,
        )
        if row.match:
            _fill(row, rounds)
            if name == DDP:
                dense = row
            if dense is not None:
                row.share_of_ddp = _sent(row) / (_DDP_STEPS[what] * _sent(dense))
        yield row


def _fill(row: Row, rounds: Sequence[Outcome]) -> None:
    timing = Timing([ms for one in rounds for ms in one.ms])
    row.p50_ms, (row.p20_ms, row.p80_ms) = timing.p50, timing.p20_p80
    wires = [one.wire_bytes for one in rounds if one.wire_bytes is not None]
    if wires:
        row.wire_bytes = round(median(wires))
        ring = 2 * (row.processes - 1) / row.processes * row.payload_bytes
        row.wire_of_ring = row.wire_bytes / ring if ring else None


def _sent(row: Row) -> int:
    return row.payload_bytes if row.wire_bytes is None else row.wire_bytes


def print_rows(rows: Sequence[Row]) -> None:
    """One line per row."""
    for row in rows:
        line = f"  {row.processes} processes, {row.what:9} {row.name:40}"
        if not row.match:
            print(f"{line} its result is wrong")
            continue
        line += f" payload {row.payload_bytes / 1e6:8.3f} MB"
        if row.wire_bytes is not None:
            line += f", sent {row.wire_bytes / 1e6:8.3f} MB"
        if row.wire_of_ring is not None:
            line += f" ({row.wire_of_ring:.4f} of a ring's)"
        if row.share_of_ddp is not None:
            line += f", {row.share_of_ddp:7.2%} of DDP"
        print(f"{line}, {row.p50_ms:.0f} ms [{row.p20_ms:.0f}, {row.p80_ms:.0f}]", flush=True)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [one.name for one in (*EXCHANGES, *ITERATIONS)]
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--width", type=int, default=128, help="base width of the network")
    parser.add_argument("--image-size", type=int, default=32, help="bytes do not depend on it")
    parser.add_argument("--rounds", type=int, default=3, help="rows take turns")
    parser.add_argument("--steps", type=int, default=3, help="counted and timed, in each round")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parsed(argv)
    options = Options(
        arguments.width,
        arguments.image_size,
        arguments.rounds,
        arguments.steps,
        tuple({DDP, *arguments.only}),
    )
    about = machine() | {"threads": 1}  # of each process
    rows: list[Row] = []
    with private_network() as obstacle:
        how = obstacle or "bytes that the loopback device of a private network sent"
        print(how)
        for processes in arguments.processes:
            found = measure(processes, options, counted=obstacle is None)
            print_rows(found)
            rows += found
            if arguments.json:
                result = {
                    "machine": about,
                    "wire": how,
                    "options": asdict(options) | {"only": None},
                    "rows": [asdict(row) for row in rows],
                }
                write_results(arguments.json, result)
    return 0 if all(row.match for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
