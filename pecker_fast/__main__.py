"""`pecker-fast` and `python -m pecker_fast`: the command line, or what to install for it."""

from __future__ import annotations

import sys

from pecker_fast.extras import missing_package

__all__ = ["main"]


def main() -> int:
    """Run the command line and return its exit code; 2 where its packages are not installed."""
    try:
        from pecker_fast import cli
    except ModuleNotFoundError as error:
        line = missing_package(error)
        if line is None:
            raise
        print(f"pecker-fast: the command line {line}", file=sys.stderr)
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
