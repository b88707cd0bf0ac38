"""What a run says about the machine."""

import json
import mmap
import os

import pytest
import torch

from pecker_fast import machine


def test_facts_are_json():
    facts = machine.machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] >= 1 and facts["threads"] >= 1 and facts["device"] == "cpu"
    assert {"torch", "pecker-fast"} <= machine.versions().keys()


@pytest.mark.parametrize(
    ("content", "cores"),
    [("max 100000\n", 8), ("200000 100000\n", 2), ("250000 100000\n", 2), ("50000 100000\n", 1)],
)
def test_a_container_quota_limits_the_cores(tmp_path, monkeypatch, content, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.usable_cores() == 8  # no such file
    (tmp_path / "cpu.max").write_text(content)
    assert machine.usable_cores() == cores


def test_a_container_limits_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.free_bytes() > 10**6  # no such files
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_bytes() > 10**6
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 150000\n")
    assert machine.free_bytes() == 450_000


def test_what_this_process_holds():
    before = machine.resident_bytes()
    block = mmap.mmap(-1, 64 << 20)  # new pages: an allocator may have some that are there
    block.write(b"1" * (64 << 20))
    assert machine.resident_bytes() > before + (32 << 20)
    block.close()
    assert machine.resident_bytes(peak=True) > before + (32 << 20)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of "
                "79.11 GiB of which 1.25 GiB is free. Including non-PyTorch memory, this process"
            ),
            "20.0 GiB asked for of the GPU's 79.11 GiB, 1.25 GiB free",
        ),
        (torch.OutOfMemoryError("another wording"), "more asked for on the GPU"),
        (MemoryError(), "more asked for of the machine's"),
        (MemoryError("Unable to allocate 7.11 PiB for an array"), "7,455,375.4 GiB asked for"),
        (RuntimeError("shapes do not match"), "None"),
        (ValueError("can allocate"), "None"),
    ],
)
def test_what_is_said_of_memory_that_ran_out(error, said):
    assert said in str(machine.out_of_memory(error))
