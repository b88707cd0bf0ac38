"""Writes records.json anew: `python tests/short_runs/make.py`.

Only where results are meant to change, with an entry under Numerics in the CHANGELOG.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).parent
RECORDS = HERE / "records.json"

# One order of every sum on all processors with AVX2, and one backend of the optimizer.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "PECKER_FAST_BACKEND": "cpu",
    "PECKER_FAST_DEBUG": "1",  # errors with their traceback
    "PYTHONPATH": str(HERE.parents[1]),  # these sources, whatever is installed
}


def versions():
    """What the bits depend on besides this package, without local parts such as +cpu."""
    return {name: version(name).split("+")[0] for name in ("torch", "diffusers", "transformers")}


def unusable(recorded):
    """Why the records say nothing here, or None."""
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return "records of short runs hold for Linux on x86-64 with AVX2"
    if versions() != recorded:
        return f"records of short runs hold for {recorded}, installed are {versions()}"
    return None


class Session:
    """A process that carries out cases, one after the other; `names` lists them."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, HERE / "cases.py"],
            env={**os.environ, **ENVIRONMENT, "SHORT_RUNS": self._folder.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names = self._answer()

    def record(self, name):
        """What a case gives.

        Raises:
            RuntimeError: With the traceback of what failed.
        """
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self):
        self._process.communicate(timeout=60)
        self._folder.cleanup()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of the short runs ended; its error output says why")
        return json.loads(line)


def main():
    session = Session()
    cases = []
    for name in session.names:
        started = time.monotonic()
        cases.append(f"{json.dumps(name)}: {json.dumps(session.record(name))}")
        print(f"{name:24} {time.monotonic() - started:5.1f} s", flush=True)
    session.close()
    lines = ",\n  ".join(cases)
    RECORDS.write_text(f'{{"versions": {json.dumps(versions())}, "cases": {{\n  {lines}\n}}}}\n')


if __name__ == "__main__":
    main()
