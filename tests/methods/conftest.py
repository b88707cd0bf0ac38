"""Makes tests/methods/small.py and tests/distill/toys.py importable from the tests."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "distill"):
    sys.path.insert(0, str(folder))
