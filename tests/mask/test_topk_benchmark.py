"""benchmarks/topk.py: it runs anywhere, and it gives no time to a wrong answer."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("topk")
    # The figures are not looked at here; the tensors of the real one take a second.
    monkeypatch.setattr(module, "copy_bandwidth", lambda: 10.0)
    return module


QUICK = "--preset tiny --density 0.1 --rounds 1 --seconds 0 --threads 1".split()


def test_every_provider_passes_the_gate(benchmark_module, tmp_path, capsys):
    output = tmp_path / "results" / "topk.json"
    assert benchmark_module.main([*QUICK, "--json", str(output)]) == 0
    result = json.loads(output.read_text())
    assert {"cpu", "threads", "torch", "commit", "copy_gb_per_s"} <= result["machine"].keys()
    providers = list(benchmark_module.PROVIDERS)
    assert [row["provider"] for row in result["rows"]] == 2 * providers
    for row in result["rows"]:
        assert row["match"] in ("exact", "ties")
        assert row["ms_min"] > 0
        assert row["bytes"] == 4 * 100_498 + 4 * 10_050
    assert "torch.topk" in capsys.readouterr().out


def test_a_wrong_selection_is_not_timed(benchmark_module, monkeypatch, capsys):
    def one_less(scores, k):
        return benchmark_module.torch_topk(scores, k - 1)

    monkeypatch.setitem(benchmark_module.PROVIDERS, "torch.topk", one_less)
    assert benchmark_module.main([*QUICK, "--provider", "torch.topk"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "torch.topk" in line]
    assert len(lines) == 2
    assert all(line.endswith("WRONG") for line in map(str.rstrip, lines))
