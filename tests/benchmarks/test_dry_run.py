"""benchmarks/dry_run.py: what a dry run says, and what the run takes."""

import pytest


@pytest.mark.slow
def test_a_row_of_a_tiny_network(run, monkeypatch):
    import dry_run
    import run_tables

    monkeypatch.setitem(dry_run.SETTINGS, "mask.kind", "random")  # a search is twice as much work
    code, result = run([dry_run.DryRunCase("tiny_text", 8)], "--threads", "1")
    (row,) = result["rows"]
    assert code == 0 and row["match"] and row["frozen_changed"] == 0
    assert row["computed_peak_bytes"] == sum(row["parts"].values())
    assert row["disk_bytes"] > 0 < row["iteration_s"] < row["run_s"]
    assert "tiny" in run_tables.dry_run(result)
