"""Writes records.json anew: `python tests/short_runs/make.py`.

Only where results are meant to change, with an entry under Numerics in the CHANGELOG.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
RECORDS = HERE / "records.json"

# One order of every sum on any processor with AVX2, be it AMD's or one with AVX-512.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Haswell",
    "CUDA_VISIBLE_DEVICES": "",
    "PECKER_FAST_DEBUG": "1",
}


def versions():
    """What the bits depend on besides this package; local parts such as +cpu left out."""
    return {name: version(name).split("+")[0] for name in ("torch", "diffusers", "transformers")}


def unusable(recorded):
    """Why the records say nothing here, or None."""
    if platform.machine() != "x86_64" or " avx2 " not in Path("/proc/cpuinfo").read_text():
        return "records of short runs hold for x86-64 with AVX2"
    if versions() != recorded:
        return f"recorded with {recorded}, installed {versions()}"
    return None


class Session:
    """A process that carries out cases, one after the other."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PECKER", "TRITON"))}
        self._process = subprocess.Popen(
            [sys.executable, HERE / "cases.py"],
            env={**clean, **ENVIRONMENT, "SHORT_RUNS": self._folder.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names = json.loads(self._process.stdout.readline())

    def record(self, name):
        """What a case gives.

        Raises:
            RuntimeError: With the traceback of what failed.
        """
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process died"}')
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)
        self._folder.cleanup()


def main():
    session = Session()
    cases = {}
    for name in session.names:
        started = time.monotonic()
        cases[name] = session.record(name)
        print(f"{name:24} {time.monotonic() - started:5.1f} s", flush=True)
    session.close()
    records = {"versions": versions(), "cases": cases}
    RECORDS.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
