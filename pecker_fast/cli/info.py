"""`pecker-fast info`: what is installed, what it can use, and why not the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from pecker_fast.cli.output import json_option, result

__all__ = ["info"]


@click.command(
    short_help="Show versions, devices and backends.",
    epilog="Example:\n\n    pecker-fast info --json > machine.json",
)
@json_option
def info() -> None:
    """Show versions, devices, threads, and the backends with the reason for each missing one."""
    facts = _collect()
    result(_lines(facts), lambda: facts)


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    machine = facts["machine"]
    yield "versions"
    for name, number in facts["versions"].items():
        yield f"  {name:12} {number}"
    yield "machine"
    yield f"  {'processor':12} {machine['processor']}, {machine['cores']} usable cores"
    yield f"  {'torch':12} {machine['threads']} threads, {machine['cpu_capability']}"
    devices = ", ".join(facts["cuda_devices"]) or f"none ({facts['cuda_reason']})"
    yield f"  {'CUDA':12} {devices}"
    yield "optimizer backends"
    for name, reason in facts["backends"].items():
        usable = "on the CPU, for tests" if name in facts["on_host"] else "available"
        yield f"  {name:12} {usable if reason is None else f'no: {reason}'}"
        if name == "cpu" and reason is None:
            kernels = facts["kernels"]
            yield f"  {'':12} uses {kernels['used']} of {', '.join(kernels['known'])}"
    chosen = ", ".join(f"{name} on {device}" for device, name in facts["auto"].items())
    yield f"  {'auto':12} {chosen}"


def _collect() -> dict[str, Any]:
    import torch

    from pecker_fast import backends
    from pecker_fast.cli.common import prepare
    from pecker_fast.machine import machine_facts, versions

    prepare("cpu", None, models=False)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reasons = backends.available()
    built_for = torch.version.cuda
    types = ["cpu"] + (["cuda"] if count else [])
    return {
        "versions": versions(),
        "machine": machine_facts(),
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(count)],
        "cuda_reason": "this torch is built without CUDA"
        if built_for is None
        else f"torch is built for CUDA {built_for}, but no device or driver is usable",
        "backends": dict(reasons),
        "on_host": list(backends.on_host()),
        "kernels": _kernels() if reasons["cpu"] is None else None,
        "auto": {device: backends.name_of(backends.select("auto", device)) for device in types},
    }


def _kernels() -> dict[str, Any]:
    """The instruction sets that the compiled kernels can use on this processor."""
    from pecker_fast import _C
    from pecker_fast.backends.cpu import instruction_set

    return {"used": instruction_set(), "known": _C.instruction_sets()}
