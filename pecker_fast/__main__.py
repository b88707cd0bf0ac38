"""`pecker-fast` and `python -m pecker_fast`: the command line, or what to install for it."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]

_INTERRUPTED = "pecker-fast: interrupted\n"


def main() -> int:
    """Run the command line and return its exit code; 2 where its packages are not installed."""
    _hear(signal.SIGINT)
    try:
        from pecker_fast import cli
        from pecker_fast.cli.torchrun import several
    except ModuleNotFoundError as error:
        from pecker_fast.extras import missing_package

        line = missing_package(error)
        if line is None:
            raise
        print(f"pecker-fast: the command line {line}", file=sys.stderr)
        return 2
    if not several():  # torchrun ends processes by it, and says why itself
        _hear(signal.SIGTERM)
    try:
        return cli.main()
    except KeyboardInterrupt:
        sys.stderr.write(_INTERRUPTED)
        return 130
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the interpreter


def _hear(number: signal.Signals) -> None:
    """Interrupt at a signal, unless it is ignored (nohup) or heard already."""
    if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or end at once in an import, where it may become anything else."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, _INTERRUPTED.encode())
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
