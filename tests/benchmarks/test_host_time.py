"""Host time of a step: that it runs, not what it says."""

from __future__ import annotations

import pytest

from pecker_fast import backends


def test_launches_do_nothing_while_it_measures(capsys):
    if "cuda" not in backends.on_host():
        pytest.skip("the CUDA kernels do not run on the CPU here")
    import host_time

    kernels = backends.select("cuda", "cpu").kernels
    module = kernels._module
    assert len(host_time.step_seconds(5, steps=13)) == 3
    assert kernels._module is module
