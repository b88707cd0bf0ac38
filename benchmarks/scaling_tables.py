"""Tables of what several processes send, counted, and of many GPUs, computed."""

from __future__ import annotations

from typing import Any

from gpu_tables import NETWORKS, Result, Rows, markdown, measured_on

__all__ = ["communication", "communication_in_short", "memory", "traffic"]

_SHORT = ("DistributedDataParallel", "density 0.5", "density 0.1", "density 0.01", "mask on both")
_NAMES = {"no mask": "ours, no mask", "mask on both": "mask on both networks, density 0.1"}


def communication(result: Result) -> str:
    """One line per row of communication.py, MB of each process by number of processes."""
    return _communication(result, None)


def communication_in_short(result: Result) -> str:
    """The lines that say it."""
    return _communication(result, _SHORT)


def _communication(result: Result, names: tuple[str, ...] | None) -> str:
    by_name: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in result["rows"]:
        assert row["match"], f"a row that failed its gate: {row}"
        assert row["wire_bytes"] is not None, f"a row that was not counted: {result['wire']}"
        if row["payload_bytes"] and (names is None or row["name"] in names):
            by_name.setdefault((row["what"], row["name"]), {})[row["processes"]] = row
    sizes = sorted({row["processes"] for row in result["rows"]})
    lines = []
    for (what, name), found in by_name.items():
        line = [f"{what}: {_NAMES.get(name, name)}"]
        for size in sizes:
            row = found[size]
            line += [f"{row['wire_bytes'] / 1e6:.1f}", f"{row['share_of_ddp']:.1%}"]
        lines.append(line)
    ratios = [
        row["wire_of_ring"]
        for found in by_name.values()
        for row in found.values()
        if row["name"] != "fully_shard"
    ]
    first = result["rows"][0]
    return markdown(
        [
            "sent by each process",
            *(text for size in sizes for text in (f"{size} processes, MB", "of DDP")),
        ],
        lines,
        f"gloo, {first['parameters'] / 1e6:.1f} M parameters (CIFAR-10 as published), fp32; an "
        "iteration is compared with two DDP steps, since two networks learn. Counted by the "
        "loopback device of a private network, headers included: "
        f"{min(ratios):.3f} to {max(ratios):.3f} of 2 (N-1)/N payloads. Every line's sums were "
        f"first checked. {measured_on(result)}",
    )


def traffic(result: Result) -> str:
    """One line per network and way: GB and ms of 8 GPUs in a node, and of 64 in several."""
    rows = _kind(result, "sent_bytes")
    lines = []
    for row in rows:
        if row["precision"] != "fp32" or row["gpus"] != 8:
            continue
        [many] = [
            other
            for other in rows
            if other["gpus"] == 64
            and all(other[key] == row[key] for key in ("preset", "precision", "way"))
        ]
        lines.append(
            [
                f"{NETWORKS[row['preset']]}, {row['way']}",
                f"{row['share_of_ddp']:.0%}",
                f"{row['sent_bytes'] / 1e9:.2f}",
                _ms(row, "NVLink 4"),
                f"{many['sent_bytes'] / 1e9:.2f}",
                _ms(many, "400 Gb/s"),
                _ms(many, "25 Gb/s"),
            ]
        )
    computing = {row["preset"]: row["compute_ms"] for row in rows}
    firsts = ", ".join(
        f"{NETWORKS[row['preset']]} {row['first_sent']:.0%} (as registered: "
        f"{row['first_sent_as_registered']:.0%})"
        for row in rows
        if (row["way"], row["precision"], row["gpus"]) == ("mask on both", "fp32", 8)
    )
    windows = ", ".join(f"{NETWORKS[preset]} {ms:.0f} ms" for preset, ms in computing.items())
    halves = {
        way: {f"{row['share_of_ddp']:.0%}" for row in rows if row["precision"] == "bf16"
              and row["way"] == way}
        for way in dict.fromkeys(row["way"] for row in rows)
    }  # fmt: skip
    shares = ", ".join(f"{way} {'/'.join(sorted(found))}" for way, found in halves.items())
    return markdown(
        [
            "an iteration",
            "bytes, of DDP",
            "8 GPUs: GB",
            "NVLink 4, ms (exposed)",
            "64 GPUs: GB",
            "400 Gb/s, ms (exposed)",
            "25 Gb/s, ms (exposed)",
        ],
        lines,
        "Computed, not measured. Per GPU: bytes sent, milliseconds of that at the link's full "
        "rate, and in brackets how many at least pass while the GPU waits. Two images a GPU, fp32 "
        f"weights under bf16 autocast, density 0.1. Computing takes {windows} at the assumed "
        f"{result['assumed']['flops_per_s'] / 1e12:.0f} TFLOP/s. With bf16 weights DDP's bytes are "
        f"half, and the shares {shares}. With a mask on both something is sent from this share of "
        f"the pseudo-score's backward pass on: {firsts}.",
    )


def memory(result: Result) -> str:
    """One line per network and way."""
    lines = []
    for row in _kind(result, "peak_bytes"):
        gpus = "" if row["gpus"] is None else f", {row['gpus']} GPUs"
        parts = row["parts"]
        lines.append(
            [
                f"{NETWORKS[row['preset']]}, {row['way']}{gpus}",
                *(
                    f"{size / 2**30:.1f}"
                    for size in (
                        row["peak_bytes"],
                        row["optimizer_bytes"],
                        parts["weights"] + parts.get("bf16 copies of weights", 0)
                        + parts.get("gathered weights", 0)
                        + parts.get("salient values of the others", 0),
                        parts.get("gradients", 0) + parts.get("buckets", 0),
                        parts["activations and temporaries"],
                    )
                ),
            ]
        )  # fmt: skip
    return markdown(
        [
            "GiB of each GPU",
            "peak",
            "optimizer state",
            "weights",
            "gradients and buckets",
            "activations and temporaries",
        ],
        lines,
        "Computed: peaks of one GPU from shapes and lifetimes (benchmarks/memory.py), one image to "
        "keep and one to forget, one after the other, plus the buckets. The rest are positions of "
        "the mask. Optimizer state includes fp32 masters of bf16 weights.",
    )


def _kind(result: Result, key: str) -> Rows:
    return [row for row in result["rows"] if key in row]


def _ms(row: dict[str, Any], link: str) -> str:
    return f"{row['wire_ms'][link]:,.0f} ({row['exposed_ms'][link]:,.0f})"
