"""A process of the command line: freed memory stays with it."""

import os
import subprocess
import sys

import pytest

ALLOCATES = """
import resource, sys
sys.path[:0] = {path}
from pecker_fast.process import settle_process
settle_process()
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

np.ones(1 << 17)  # 1 MiB: 256 pages, and too small for huge ones
before = faults()
for _ in range(100):
    np.ones(1 << 17)
print(faults() - before)
"""


def page_faults(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    script = ALLOCATES.format(path=sys.path)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env={**kept, **environment})
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_comes_from_the_kernel_once():
    assert page_faults() < 1_000
    # What the environment says stays: here that such an array goes back each time.
    assert page_faults(MALLOC_MMAP_THRESHOLD_="131072") > 10_000
