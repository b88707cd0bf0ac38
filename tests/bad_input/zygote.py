"""Runs command lines of bad input: each in a fork of a process that has imported everything.

    python tests/bad_input/zygote.py

reads one request a line, a JSON object, and answers with one: how the command line ended. A fork
costs 30 ms where a start of the package costs eight seconds. It has a limit of memory and of time,
and a process group of its own, which ends with it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SECONDS = 60
"""That a command line may take, of the processor and by the clock."""
MEGABYTES = 1024
"""That it may take in all, imported modules included."""

_ADDRESSES = 3 << 30
"""Bytes of address space beyond the zygote's, so that what runs wild does not harm the machine."""
_IDLE = 10
"""Seconds after which what waits for something that will not come is ended."""
_NOBODY = 65534


@dataclass(frozen=True)
class Ended:
    """How a command line ended.

    Attributes:
        code: its exit status; minus the signal that killed it.
        out: what it said on standard output.
        err: what it said on standard error.
        seconds: how long it took.
        megabytes: the most memory it held.
    """

    code: int
    out: str
    err: str
    seconds: float
    megabytes: float


class Zygote:
    """The process, seen from the tests."""

    def __init__(self) -> None:
        environment = dict(os.environ)
        environment |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        # As `cli.main` sets them, before anything is imported.
        environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment["TOKENIZERS_PARALLELISM"] = "false"
        environment.pop("TRITON_INTERPRET", None)
        root = Path(__file__).resolve().parents[2]
        path = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def run(self, folder: Path, arguments: list[str], **options: Any) -> Ended:
        """Run a command line in a folder; `options` are those of `_child`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        # Arguments may be no UTF-8: json keeps the surrogates that stand for such bytes.
        request = {"folder": str(folder), "arguments": arguments, **options}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _import_everything() -> None:
    import pecker_fast

    for module in pkgutil.walk_packages(pecker_fast.__path__, "pecker_fast."):
        if not module.name.endswith("__main__") and ".kernels" not in module.name:
            importlib.import_module(module.name)
    for name in (
        "click._textwrap", "diffusers", "encodings.cp437", "encodings.idna", "jinja2",
        "matplotlib.backends.backend_agg", "matplotlib.pyplot", "onnxruntime",
        "PIL.PngImagePlugin", "torch_fidelity", "torchvision", "transformers", "yaml",
    ):  # fmt: skip
        with contextlib.suppress(ImportError):  # an extra that is missing says so itself
            importlib.import_module(name)
    from diffusers import (  # noqa: F401
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        UNet2DConditionModel,
        UNet2DModel,
    )
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer  # noqa: F401

    DDIMScheduler._get_compatibles()  # what reading any noise schedule imports


def _child(
    folder: str,
    arguments: list[str],
    log: str,
    *,
    environment: dict[str, str | None] | None = None,
    stdin: str | None = os.devnull,
    stdout: str | None = None,
    stderr: str | None = None,
    nobody: bool = False,
    vanish: bool = False,
) -> int:
    """What a fork does: a command line, as if the process had been started for it.

    Args:
        folder: where it is started.
        arguments: the command line.
        log: folder for what it says, `out` and `err`.
        environment: variables to set; None to remove one.
        stdin: a file; "closed" for none.
        stdout: likewise. None: into `log`.
        stderr: likewise.
        nobody: run it as a user without rights, where that can be done.
        vanish: start it in a folder that is then removed.
    """
    os.setsid()
    os.chdir(folder)
    if vanish:
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
    for name, value in (environment or {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    streams = {0: stdin, 1: stdout or f"{log}/out", 2: stderr or f"{log}/err"}
    for number, place in streams.items():
        if place == "closed":
            os.close(number)
        else:
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(str(place), flags, 0o666), number)
    if nobody and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, addresses + _ADDRESSES),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    from pecker_fast import cli

    code = cli.main(arguments)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as log:
        for name in ("out", "err"):
            Path(log, name).touch()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = _child(log=log, **request)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 98
            except BaseException:
                with open(f"{log}/err", "a") as err:
                    traceback.print_exc(file=err)
            finally:
                os._exit(code)
        ended, spent, moved = 0, 0, started
        while not ended:
            ended, status, used = os.wait4(child, os.WNOHANG)
            now = time.monotonic()
            if not ended and (ticks := _ticks(child)) != spent:
                spent, moved = ticks, now
            if not ended and (now - started > 2 * SECONDS or now - moved > _IDLE):
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.002)
        seconds = time.monotonic() - started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        out, err = (Path(log, n).read_bytes().decode(errors="replace") for n in ("out", "err"))
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": out[:20_000],
        "err": err[:200_000],
        "seconds": seconds,
        "megabytes": used.ru_maxrss / 1024,
    }


def _ticks(process: int) -> float:
    """What a process has had of the processor; it is busy while it waits for its turn."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) if fields[0] == "S" else time.monotonic()


def main(requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until there are no more."""
    _import_everything()
    for line in requests:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are no modules of the process under test
    # The forks have streams of their own; what they are given must not reach the tests.
    answers = os.fdopen(os.dup(1), "w")
    requests = os.fdopen(os.dup(0), "r")
    os.dup2(2, 1)
    main(requests, answers)
    os._exit(0)  # taking down what was imported takes seconds
