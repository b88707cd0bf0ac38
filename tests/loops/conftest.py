"""Makes what the tests of training loops share importable, here and in processes of their own."""

import os
import sys
from pathlib import Path

_FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "distributed")]
sys.path[:0] = _FOLDERS
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ["HF_HUB_OFFLINE"] = "1"
