"""The writer of CIFAR-10's layout is shared by the tests here and in tests/commands."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for cifar_files.py
