"""benchmarks/topk.py: it runs anywhere, and it gives no time to a wrong answer."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def topk(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("topk")
    # The figures are not looked at here; the tensors of the real one take a second.
    monkeypatch.setattr(module, "bandwidth", lambda timer, device: {"copy_gb_per_s": 10.0})
    return module


QUICK = "--preset tiny --density 0.1 --rounds 1 --seconds 0 --threads 1".split()


def test_every_provider_passes_the_gate(topk, tmp_path, capsys):
    output = tmp_path / "results" / "topk.json"
    assert topk.main([*QUICK, "--json", str(output)]) == 0
    result = json.loads(output.read_text())
    assert {"device", "threads", "torch", "commit", "copy_gb_per_s"} <= result["machine"].keys()
    providers = list(topk.make_providers("cpu"))
    assert [row["provider"] for row in result["rows"]] == 2 * providers
    for row in result["rows"]:
        assert row["match"] in ("exact", "ties")
        assert row["ms_min"] > 0
        assert row["bytes"] == 4 * 100_498 + 4 * 10_050
        # One read at 10 GB/s; the shares are given to a thousandth.
        assert row["floor_ms"] == pytest.approx(4 * 100_498 / 10e9 * 1e3, abs=1e-4)
        assert row["floor_share"] == pytest.approx(row["floor_ms"] / row["ms_median"], abs=2e-3)
    assert "torch.topk" in capsys.readouterr().out


def test_a_wrong_selection_is_not_timed(topk, monkeypatch, capsys):
    def one_less(scores, k):
        return topk.torch_topk(scores, k - 1)

    monkeypatch.setattr(topk, "make_providers", lambda *_: {"torch.topk": one_less})
    assert topk.main(QUICK) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "torch.topk" in line]
    assert len(lines) == 2
    assert all(line.endswith("WRONG") for line in map(str.rstrip, lines))


def test_an_unknown_provider_is_named(topk, capsys):
    with pytest.raises(SystemExit, match="2"):
        topk.main([*QUICK, "--provider", "numpy"])
    assert "no provider 'numpy': expected one of torch.topk" in capsys.readouterr().err


@pytest.mark.parametrize("k", [1, 7, 40, 99, 100])
def test_the_independent_selection_is_the_references(topk, k):
    """With many ties, infinities and zeros of both signs."""
    from pecker_fast import backends

    values = torch.tensor([0.0, -0.0, 1.0, 2.0, 2.0, -1.0, float("inf")])
    scores = [values[torch.randint(7, (n,))] for n in (1, 39, 60)]
    expected = backends.select("reference", "cpu").select_topk(scores, k)
    assert torch.equal(
        topk.exact_selection(scores, k), topk.flat_selection("reference", expected, scores)
    )


def test_ties_are_allowed_to_baselines_only(topk):
    scores = [torch.tensor([1.0, 2.0, 1.0, 0.0])]
    expected = topk.exact_selection(scores, 2)
    assert expected.tolist() == [True, True, False, False]
    other = torch.tensor([False, True, True, False])
    assert topk.agreement("torch.topk", other, expected, scores) == "ties"
    assert topk.agreement("pecker_fast cuda", other, expected, scores) == "WRONG"


def test_memory_is_given_with_and_without_the_selection(topk, monkeypatch):
    monkeypatch.setattr(topk, "peak_memory", lambda run, device: (run(), 1000))
    scores = [torch.rand(30), torch.rand(20)]
    expected = topk.exact_selection(scores, 10)
    select = topk.make_providers("cpu")["torch.sort"]
    row = topk.check(scores, 10, "torch.sort", select, expected, "cuda")
    assert row == {
        "match": "exact",
        "peak_extra_bytes": 1000,
        "extra_bytes_without_result": 1000 - 4 * 10,
    }


def test_a_baseline_that_does_not_fit_says_so_and_ours_must(topk, monkeypatch):
    def full(scores, k):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 1.")

    scores, expected = [torch.rand(9)], torch.ones(9, dtype=torch.bool)
    row = topk.check(scores, 9, "torch.sort", full, expected, "cpu")
    assert row == {"match": None, "skipped": "CUDA out of memory. Tried to allocate 9 GiB"}
    with pytest.raises(torch.OutOfMemoryError):
        topk.check(scores, 9, "pecker_fast cuda", full, expected, "cpu")


def test_on_a_gpu_the_timer_measures(topk, monkeypatch):
    from timing import Timing

    class Timer:
        def measure(self, call, repeats):
            call()
            return Timing([2.0] * repeats, host_us=1.0, wall_ms=3.0)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    providers = topk.make_providers("cpu", ["reference"])
    rows = topk.measure([torch.rand(1000)], 0.1, providers, 4, 0, 10.0, Timer())
    found = {(row["provider"], row["ms_median"], row["wall_ms"], row["runs"]) for row in rows}
    assert found == {(name, 2.0, 3.0, 4) for name in providers}
