"""The benchmarks are scripts that import each other by name."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_on_the_path():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        yield


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run cases as a command does, with figures for the bandwidth; the exit code and the file."""
    import bench

    figures = {"copy_gb_per_s": 10.0, "in_place_gb_per_s": 20.0, "roof_gb_per_s": 20.0}
    monkeypatch.setattr(bench, "bandwidth", lambda timer, device: dict(figures))

    def run(cases, *options):
        path = tmp_path / "rows.json"
        parser = bench.make_parser("", repeats=1)
        arguments = parser.parse_args(["--backend", "reference", "--json", str(path), *options])
        code = bench.command(arguments, cases)
        return code, json.loads(path.read_text()) if path.exists() else None

    return run
