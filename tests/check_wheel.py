"""Run against an installed wheel: everything the package needs at run time came along.

Usage: python check_wheel.py FOLDER, with FOLDER on PYTHONPATH. Not a pytest file: it must not see
the source tree.
"""

import importlib.metadata
import sys
from pathlib import Path

import pecker_fast
import pecker_fast.kernels
from pecker_fast import MaskedAdamW, PeckerTrainer, SaliencyMask, backends
from pecker_fast.distill.config import load_config

root = Path(sys.argv[1]).resolve()
for module in (pecker_fast, pecker_fast.kernels):
    found = Path(next(iter(module.__path__))).resolve()
    assert found.is_relative_to(root), f"{module.__name__} came from {found}, not from the wheel"
description = importlib.metadata.metadata("pecker-fast").get_payload()
assert description.lstrip().startswith("# pecker_fast"), description[:80]
for name in (MaskedAdamW, PeckerTrainer, SaliencyMask):
    assert name.__doc__
assert load_config("second_stage").iterations > 0
assert load_config("demo_emoji_object").text is not None
assert (Path(pecker_fast.__file__).parent / "evaluate" / "page.html").is_file()
print(f"pecker_fast {pecker_fast.__version__} from the wheel; backends:", backends.available())
