"""Settings of a process that works on a CPU, made before torch is loaded."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["settle_process"]

# Parameters of glibc's mallopt, and what they are set to. An array of more than the threshold (at
# first 128 KiB) comes from the kernel and goes back to it when it is freed, and so does what is
# free at the end of the heap: the next one of its size is zeroed and mapped page by page again. An
# iteration of the demo took 11,000 to 22,600 page faults, 4 to 10 % of its time, and takes about
# ten. What a run has needed once it keeps until it ends.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BYTES = 1 << 30
_MOST_BYTES = 32 << 20  # of an mmap threshold where glibc refuses more


def settle_process() -> None:
    """How OpenMP's threads wait, and where memory comes from and goes to, until the process ends.

    What the environment says of either stays.
    """
    # How long idle OpenMP threads spin. libgomp's default makes torch up to 20 times slower beside
    # another busy process; not at all (OMP_WAIT_POLICY=PASSIVE) costs the demo's small convolutions
    # 0.375 s an iteration instead of 0.237 on two cores.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Torch asks for huge pages where it allocates 2 MB or more: an iteration of the demo took 304
    # ms instead of 342 (fastest of nine, two cores), a masked step of 8 M entries 6 to 13 % less.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not is_set:
        if not mallopt(_MMAP_THRESHOLD, _BYTES):
            mallopt(_MMAP_THRESHOLD, _MOST_BYTES)
        mallopt(_TRIM_THRESHOLD, _BYTES)
