"""Files that differ from valid ones in bits and pieces: read, or refused as bad input.

Needs atheris, which is built for some platforms only. What is found becomes a test of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris")

from fuzz_reader import READERS

RUNS = 1500


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_but_bad_input(tmp_path):
    script = Path(__file__).with_name("fuzz_reader.py")
    limits = [f"-runs={RUNS}", "-seed=1", "-timeout=20", "-rss_limit_mb=4096", "-max_len=4096"]
    done = subprocess.run(
        [sys.executable, script, tmp_path, *limits],
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
        capture_output=True,
        text=True,
    )
    said = {name: (tmp_path / f"{name}.log").read_text() for name in READERS}
    failed = [name for name in READERS if f"{name}: 0" not in done.stdout.splitlines()]
    failed += [name for name in READERS if f"Done {RUNS}" not in said[name]]
    assert not failed, "\n".join(f"{name}: {said[name][-2000:]}" for name in failed) + done.stderr
