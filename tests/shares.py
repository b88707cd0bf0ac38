"""Which of very many cases run: a share of them, chosen by name, so that it is the same each time.

All of them with PECKER_FAST_ALL_BAD_INPUT=1.
"""

import os
import zlib


def chosen(name: str, every: int) -> bool:
    """Whether the case of that name is the one in so many that runs."""
    everything = "PECKER_FAST_ALL_BAD_INPUT" in os.environ
    return everything or zlib.crc32(name.encode()) % every == 0
