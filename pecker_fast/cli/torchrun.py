"""The command line as one of several processes: the first speaks, torchrun hears why one failed."""

from __future__ import annotations

import faulthandler
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

__all__ = ["has_report", "is_first", "one_voice", "recorded", "several"]

_REPORT = "TORCHELASTIC_ERROR_FILE"
"""Environment variable: the file in which torchrun expects to read why this process failed."""


def several() -> bool:
    """Whether this is one of several processes; without importing torch."""
    return os.environ.get("WORLD_SIZE", "") not in ("", "1")


def is_first() -> bool:
    """Whether this is the first of them, or the only one."""
    return not several() or os.environ.get("RANK", "0") == "0"


def has_report() -> bool:
    """Whether torchrun says why this process failed."""
    return bool(os.environ.get(_REPORT))


@contextmanager
def one_voice() -> Iterator[None]:
    """In the block only the first process reports."""
    if is_first():
        yield
        return
    os.environ["TQDM_DISABLE"] = "1"
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def recorded(
    command: Callable[..., Any], explain: Callable[[BaseException], tuple[str, int]]
) -> Callable[..., Any]:
    """The same command; torchrun names the process in which it fails first, and says why.

    Args:
        command: what the process does.
        explain: the line and the exit code of an exception; 1 is a fault of the program, of which
            torchrun shows the traceback.
    """
    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, record

    from pecker_fast.distributed import ranks

    class Handler(ErrorHandler):
        def initialize(self) -> None:
            faulthandler.enable(2)  # sys.stderr may lead nowhere

        def record_exception(self, e: BaseException) -> None:
            line, code = explain(e)
            if code == 130:
                return  # torchrun knows of the signal: it has handed it on
            if code == 1:
                super().record_exception(e)
            elif has_report():
                report = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
                Path(os.environ[_REPORT]).write_text(json.dumps({"message": report}))
            if has_report() and not is_first():
                # The first process may fail for the same reason, and has to say so.
                time.sleep(ranks.HEAD_START)

    return record(command, Handler())
