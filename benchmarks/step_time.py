"""Time of one optimizer step: MaskedAdamW beside what people run today, in one process.

    python benchmarks/step_time.py                               # CIFAR-10 DDPM, fp32
    python benchmarks/step_time.py --preset tiny --densities 0.5 --repeats 5
    python benchmarks/step_time.py --dtype bfloat16 --backend reference --json out.json

Every row is first checked: the backend must agree with the reference on that very input and leave
every frozen entry bit-identical. A row that fails is printed without a time, and the exit code is
1. Providers take turns, so none finds its data in a cache and all see the same load.

Masks: "random" makes every entry salient with equal probability; "heavy" multiplies random
scores by a log-normal scale per row (sigma 2) and takes the global top-k, which touches about as
few cache lines as real saliency does.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from presets import PRESETS, shapes
from torch import Tensor

from pecker_fast.mask import SaliencyMask
from pecker_fast.optim import MaskedAdamW

OPTIONS = {"lr": 1e-5, "weight_decay": 0.1}
LINE_BYTES = 64
HEAVY_SIGMA = 2.0
Params = dict[str, torch.nn.Parameter]
Masks = dict[str, Tensor]


@dataclass
class Row:
    """One provider on one mask."""

    preset: str
    dtype: str
    mask: str  # none, random or heavy
    density: float
    lines: float  # share of the parameters' 64-byte lines that hold a salient entry
    provider: str
    match: bool | None  # agrees with the reference; None for the baselines
    p50_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    bytes_moved: int | None = None  # the floor of a masked step, ours only
    gb_per_s: float | None = None
    roof_share: float | None = None  # of the bandwidth measured in this process
    state_bytes: int | None = None
    vs_torch_fused: float | None = None
    vs_gradmask: float | None = None  # speed-up over `grad *= mask` (bool) + fused AdamW
    vs_gradmask_int64: float | None = None
    vs_restore: float | None = None  # over the one baseline that really freezes


# ---- inputs


def make_params(preset: str, dtype: torch.dtype, device: str) -> Params:
    """Parameters with gradients, as a training step leaves them."""
    params = {}
    for name, shape in shapes(preset).items():
        params[name] = torch.nn.Parameter((0.02 * torch.randn(shape)).to(device, dtype))
        params[name].grad = torch.randn(shape).to(device, dtype)
    return params


def make_mask(kind: str, params: Params, density: float) -> Masks | None:
    """Bool masks by name, or None for kind "none"."""
    if kind == "none":
        return None
    scores = {name: torch.rand(param.shape) for name, param in params.items()}
    if kind == "heavy":
        for name, score in scores.items():
            if score.dim() > 0:
                rows = torch.exp(HEAVY_SIGMA * torch.randn(score.shape[0]))
                score.normal_().abs_().mul_(rows.view(-1, *[1] * (score.dim() - 1)))
            else:
                scores[name] = torch.randn(()).abs()
    dense = SaliencyMask.from_scores(scores, density).to_dense()
    return {name: mask.to(params[name].device) for name, mask in dense.items()}


def touched_lines(params: Params, masks: Masks | None) -> tuple[int, int]:
    """How many 64-byte lines hold a salient entry, and how many there are."""
    touched = total = 0
    for name, param in params.items():
        per_line = LINE_BYTES // param.element_size()
        lines = -(-param.numel() // per_line)
        total += lines
        if masks is None:
            touched += lines
        else:
            flat = masks[name].flatten()
            padded = torch.nn.functional.pad(flat, (0, lines * per_line - flat.numel()))
            touched += int(padded.view(-1, per_line).any(dim=1).sum())
    return touched, total


def bytes_floor(params: Params, masks: Masks | None, optimizer: MaskedAdamW) -> int:
    """What a step must move: touched lines of p (twice) and g; index; each state value twice."""
    touched, _ = touched_lines(params, masks)
    moved = 3 * LINE_BYTES * touched
    for param in params.values():
        state = optimizer.state[param]
        values = [t for key, t in state.items() if key != "step"]
        moved += sum(2 * t.numel() * t.element_size() for t in values)
        if masks is not None:
            moved += 4 * state["exp_avg_sq"].numel()
    return moved


# ---- providers


def ours(params: Params, masks: Masks | None, backend: str) -> MaskedAdamW:
    return MaskedAdamW(params.items(), **OPTIONS, mask=masks, backend=backend)


def baselines(params: Params, masks: Masks | None) -> dict[str, Callable[[], None]]:
    """What people run today. All share one optimizer: only the time of a step matters."""
    fused = torch.optim.AdamW(params.values(), **OPTIONS, fused=True)
    steps: dict[str, Callable[[], None]] = {"torch_fused": fused.step}
    if masks is None:
        return steps
    int64_masks = {name: mask.long() for name, mask in masks.items()}  # as SalUn's files have them
    originals = {name: param.detach().clone() for name, param in params.items()}

    def gradmask(which: Masks) -> None:
        for name, param in params.items():
            param.grad.mul_(which[name])
        fused.step()

    @torch.no_grad()
    def restore() -> None:
        gradmask(masks)
        for name, param in params.items():
            param.copy_(torch.where(masks[name], param, originals[name]))

    steps["gradmask_fused"] = lambda: gradmask(masks)
    steps["gradmask_int64_fused"] = lambda: gradmask(int64_masks)
    steps["gradmask_fused_restore"] = restore
    return steps


def gate(params: Params, masks: Masks | None, backend: str) -> bool:
    """Three steps on copies of this very input: backend against reference, frozen bits."""
    results = []
    for name in ("reference", backend):
        copies = {}
        for key, param in params.items():
            copies[key] = torch.nn.Parameter(param.detach().clone())
            copies[key].grad = param.grad
        optimizer = ours(copies, masks, name)
        for _ in range(3):
            optimizer.step()
        results.append(copies)
    # Low precision may round to either neighbour.
    rtol = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(
        next(iter(params.values())).dtype, 1e-6
    )
    expected, found = results
    for key, before in params.items():
        if not torch.allclose(found[key], expected[key], rtol=rtol, atol=1e-7):
            return False
        if masks is not None:
            frozen = ~masks[key]
            if not torch.equal(found[key].detach()[frozen], before.detach()[frozen]):
                return False
    return True


# ---- measurement


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measure(
    providers: dict[str, Callable[[], None]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Milliseconds of each call, the providers taking turns."""
    times: dict[str, list[float]] = {name: [] for name in providers}
    for turn in range(repeats + 2):  # the first two warm up
        for name, call in providers.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def bandwidth(device: str, repeats: int) -> dict[str, float]:
    """GB/s of a large copy and of an in-place addition, reads and writes counted.

    A step works in place. A copy on a CPU is slower than its count says, since the CPU also reads
    the lines that are going to be overwritten; so the roof is the larger of the two.
    """
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    calls = {"copy": lambda: target.copy_(source), "in_place": lambda: source.add_(1.0)}
    times = measure(calls, max(repeats, 5), device)
    moved = 2 * source.numel() * source.element_size()
    return {name: moved / statistics.median(values) / 1e6 for name, values in times.items()}


def run_case(
    preset: str,
    dtype: torch.dtype,
    kind: str,
    density: float,
    backend: str,
    repeats: int,
    device: str,
    roof_gb_per_s: float,
) -> list[Row]:
    """Gate, then time every provider on one mask."""
    params = make_params(preset, dtype, device)
    masks = make_mask(kind, params, density)
    touched, total = touched_lines(params, masks)

    def row(provider: str, match: bool | None) -> Row:
        name = str(dtype).removeprefix("torch.")
        return Row(preset, name, kind, density, touched / total, provider, match)

    optimizer = ours(params, masks, backend)
    label = f"pecker_fast[{optimizer.backend}]"
    if not gate(params, masks, backend):
        return [row(label, False)]
    providers = {label: optimizer.step, **baselines(params, masks)}
    times = measure(providers, repeats, device)
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        result = row(name, True if name == label else None)
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        result.p20_ms, result.p50_ms, result.p80_ms = deciles[1], median[name], deciles[7]
        if name == label:
            result.bytes_moved = bytes_floor(params, masks, optimizer)
            result.gb_per_s = result.bytes_moved / median[name] / 1e6
            result.roof_share = result.gb_per_s / roof_gb_per_s
            tensors = (t for state in optimizer.state.values() for t in state.values())
            result.state_bytes = sum(t.numel() * t.element_size() for t in tensors)
        speed_up = {other: median[other] / median[name] for other in median}
        result.vs_torch_fused = speed_up["torch_fused"]
        result.vs_gradmask = speed_up.get("gradmask_fused")
        result.vs_gradmask_int64 = speed_up.get("gradmask_int64_fused")
        result.vs_restore = speed_up.get("gradmask_fused_restore")
        rows.append(result)
    return rows


# ---- output

_COLUMNS = (
    ("mask", "mask", "{}"),
    ("density", "density", "{:g}"),
    ("lines", "lines", "{:.3f}"),
    ("provider", "provider", "{}"),
    ("p50_ms", "ms", "{:.2f}"),
    ("p20_ms", "p20", "{:.2f}"),
    ("p80_ms", "p80", "{:.2f}"),
    ("bytes_moved", "MB", "{:.0f}"),
    ("gb_per_s", "GB/s", "{:.1f}"),
    ("roof_share", "of roof", "{:.0%}"),
    ("state_bytes", "state MB", "{:.0f}"),
    ("vs_torch_fused", "x fused", "{:.2f}"),
    ("vs_gradmask", "x gradmask", "{:.2f}"),
    ("vs_gradmask_int64", "x int64", "{:.2f}"),
    ("vs_restore", "x restore", "{:.2f}"),
    ("match", "match", "{}"),
)


def print_table(rows: list[Row]) -> None:
    lines = [[title for _, title, _ in _COLUMNS]]
    for row in rows:
        cells = []
        for field, _, form in _COLUMNS:
            value = getattr(row, field)
            if field.endswith("bytes") or field == "bytes_moved":
                value = None if value is None else value / 1e6
            cells.append("" if value is None else form.format(value))
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def machine(device: str, gb_per_s: dict[str, float]) -> dict[str, object]:
    """What a figure needs beside it to be a fact."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if device != "cpu":
        model = torch.cuda.get_device_name()
    elif cpuinfo.exists():
        names = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": model,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        **{f"{name}_gb_per_s": round(value, 1) for name, value in gb_per_s.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="ddpm_cifar10")
    parser.add_argument("--densities", type=float, nargs="*", default=[0.5, 0.1, 0.01])
    parser.add_argument(
        "--masks", nargs="*", choices=["random", "heavy"], default=["random", "heavy"]
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    gb_per_s = bandwidth(arguments.device, arguments.repeats)
    about = machine(arguments.device, gb_per_s)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    cases = [("none", 1.0)]
    cases += [(kind, density) for kind in arguments.masks for density in arguments.densities]
    rows = []
    for kind, density in cases:
        rows += run_case(
            arguments.preset,
            getattr(torch, arguments.dtype),
            kind,
            density,
            arguments.backend,
            arguments.repeats,
            arguments.device,
            max(gb_per_s.values()),
        )
        print(f"  {kind} {density:g} done", file=sys.stderr)
    print_table(rows)
    if arguments.json:
        result = {"machine": about, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row.match is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
