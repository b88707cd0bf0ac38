"""benchmarks/communication.py: bytes are counted, results checked, formulae held to the counts."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def counted():
    """(processes, name) -> row of what was counted on the wire."""
    from rows import RESULTS

    rows = json.loads((RESULTS / "communication-cpu.json").read_text())["rows"]
    return {(row["processes"], row["name"]): row for row in rows}


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("DistributedDataParallel", [1]),
        ("no mask", [1]),
        ("density 0.5", [0.5]),
        ("density 0.1", [0.1]),
        ("density 0.1, released gradients", [0.1]),
        ("no mask, both networks", [1, 1]),
        ("mask on the generator, dense pseudo-score", [1, 0.1]),
        ("mask on both", [0.1, 0.1]),
        ("mask on both, released gradients", [0.1, 0.1]),
    ],
)
def test_the_formula_gives_the_counted_bytes(counted, processes, name, shares):
    """1 %: headers, acknowledgements and what the trainer sends besides gradients."""
    from communication import ring_bytes

    row = counted[processes, name]
    payload = 4 * sum(shares) * row["parameters"]
    assert row["payload_bytes"] == pytest.approx(payload, rel=1e-4)  # rounded for each parameter
    assert row["wire_bytes"] == pytest.approx(ring_bytes(payload, processes), rel=0.01)


def test_the_page_has_the_formulas_figures():
    from communication import ring_bytes
    from inputs import shapes
    from tables import ROOT

    page = (ROOT / "docs" / "many-gpus.md").read_text()
    sizes = [sum(map(math.prod, shapes(preset).values())) for preset in ("sd15", "sdxl")]
    names = {"DistributedDataParallel": 8, "mask on the generator": 4 * 1.1, "mask on both": 0.8}
    for name, factor in names.items():
        figures = [f"{ring_bytes(factor * size, 8) / 1e9:.1f}" for size in sizes]
        assert f"| {' | '.join([name, *figures])} |" in page


@pytest.mark.slow
def test_rows_are_checked_and_counted(tmp_path):
    """In a network of their own where this process may make one: on Linux, as root."""
    alone = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode != 0:
        alone = []
    names = ["fully_shard", "density 0.1", "density 0.1, released gradients", "mask on both"]
    file = tmp_path / "rows.json"
    command = [
        sys.executable,
        "benchmarks/communication.py",
        "--processes",
        "2",
        "--preset",
        "tiny",
    ]
    root = Path(__file__).resolve().parents[2]
    options = ["--processes", "2", "--provider", *names, "--json", str(file)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([*alone, *command, *options], check=True, cwd=root, env=environment)
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    ddp = rows["DistributedDataParallel"]
    assert ddp["match"] and ddp["payload_bytes"] == 4 * ddp["parameters"]
    assert ddp["share_of_ddp"] == 1
    for name in names[1:]:
        # Headers, acknowledgements and two barriers: they weigh more here than at full size.
        assert rows[name]["match"] and 0.09 < rows[name]["share_of_ddp"] < 0.13
    assert bool(alone) == (ddp["wire_bytes"] is not None)
    if alone:
        assert ddp["wire_of_ring"] == pytest.approx(1, abs=0.02)
        assert rows["fully_shard"]["share_of_ddp"] == pytest.approx(2, abs=0.05)


def test_the_check_sees_one_wrong_entry():
    from communication import sums_agree

    torch.manual_seed(0)
    own = torch.randn(4, 5)
    wrong = own.clone()
    wrong[-1, -1] *= 1 + 2**-20
    exact, sizes = own.double(), own.double().abs()
    everything = torch.ones(4, 5, dtype=torch.bool)
    assert sums_agree(own, exact, sizes, 2, None)
    assert sums_agree(own[everything], exact, sizes, 2, everything)
    assert not sums_agree(wrong, exact, sizes, 2, None)
    everything[-1, -1] = False
    assert sums_agree(wrong[everything], exact, sizes, 2, everything)
