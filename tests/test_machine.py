"""What a run says about the machine."""

import json
import os

import pytest

from pecker_fast import machine


def test_facts_are_json():
    facts = machine.machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] >= 1 and facts["threads"] >= 1 and facts["device"] == "cpu"
    assert machine.versions()["torch"] and "pecker-fast" in machine.versions()


@pytest.mark.parametrize(
    ("content", "cores"),
    [("max 100000\n", 8), ("200000 100000\n", 2), ("250000 100000\n", 2), ("50000 100000\n", 1)],
)
def test_a_container_quota_limits_the_cores(tmp_path, monkeypatch, content, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "_CPU_MAX", tmp_path / "cpu.max")
    assert machine.usable_cores() == 8  # no such file
    (tmp_path / "cpu.max").write_text(content)
    assert machine.usable_cores() == cores
