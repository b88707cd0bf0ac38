"""A loopback device that nobody else uses, whose counters say what processes send to each other.

Linux only, and only for root: a user may run a benchmark as `unshare -rn python ...`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["loopback_bytes", "private_network"]

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_UP_AND_RUNNING = 0x41


@contextmanager
def private_network() -> Iterator[str | None]:
    """This thread, and processes that it starts inside, have a network with loopback only.

    Yields:
        None, or why it could not be made: then nothing has changed.
    """
    if not sys.platform.startswith("linux"):
        yield f"network namespaces are Linux's; this is {sys.platform}"
        return
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            yield f"no network of its own ({reason}): run it as `unshare -rn python ...`"
            return
        try:
            _start_loopback()
            yield None
        finally:
            if libc.setns(before, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot return to the network from before")
    finally:
        os.close(before)


def loopback_bytes() -> int:
    """Bytes that the loopback device of this thread's network has sent, headers included."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    counters = next(line for line in lines if line.strip().startswith("lo:"))
    return int(counters.partition(":")[2].split()[8])


def _start_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", _UP_AND_RUNNING)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
