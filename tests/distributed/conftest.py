"""Makes tests/distributed/processes.py and the toys importable, here and in forked processes."""

import os
import sys
from pathlib import Path

_FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "distill")]
sys.path[:0] = _FOLDERS
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])]
)
