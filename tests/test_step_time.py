"""benchmarks/step_time.py runs, writes its rows, and gives no time to a wrong result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def step_time(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step_time

    return step_time


def test_every_row_is_gated_and_written(step_time, monkeypatch, tmp_path, capsys):
    file = tmp_path / "rows.json"
    arguments = ["--preset", "tiny", "--densities", "0.1", "--repeats", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["step_time.py", *arguments])
    assert step_time.main() == 0
    written = json.loads(file.read_text())
    ours = [row for row in written["rows"] if row["provider"].startswith("pecker_fast")]
    assert [row["mask"] for row in ours] == ["none", "random", "heavy"]
    assert all(row["match"] is True and row["p50_ms"] > 0 for row in ours)
    assert written["machine"]["copy_gb_per_s"] > 0
    providers = {row["provider"] for row in written["rows"]}
    assert {"torch_fused", "gradmask_fused", "gradmask_fused_restore"} < providers
    assert "x gradmask" in capsys.readouterr().out


def test_a_wrong_result_gets_no_time(step_time, monkeypatch):
    """A frozen entry that moves by one unit in the last place closes the gate."""
    honest = step_time.ours

    def faulty(params, masks, backend):
        optimizer = honest(params, masks, backend)
        if backend != "reference":
            frozen = (~masks["odd"]).nonzero()[0]

            def disturb(*_):
                weight = params["odd"].data
                weight[tuple(frozen)] = torch.nextafter(weight[tuple(frozen)], torch.tensor(1.0))

            optimizer.register_step_post_hook(disturb)
        return optimizer

    monkeypatch.setattr(step_time, "ours", faulty)
    arguments = ("tiny", torch.float32, "random", 0.5, "auto", 2, "cpu", 1.0)
    rows = step_time.run_case(*arguments)
    assert [row.match for row in rows] == [False]
    assert rows[0].p50_ms is None


def test_bytes_floor_counts_lines(step_time):
    """By hand: 2 lines of 16 floats, one of them touched, 3 salient entries."""
    params = {"p": torch.nn.Parameter(torch.zeros(32))}
    mask = torch.zeros(32, dtype=torch.bool)
    mask[[1, 2, 9]] = True
    masks = {"p": mask}
    optimizer = step_time.ours(params, masks, "reference")
    assert step_time.touched_lines(params, masks) == (1, 2)
    assert step_time.bytes_floor(params, masks, optimizer) == 3 * 64 + 3 * (4 + 16)


def test_the_cifar10_preset_is_the_published_network(step_time):
    from presets import shapes

    assert sum(shape.numel() for shape in shapes("ddpm_cifar10").values()) == 35_751_939
