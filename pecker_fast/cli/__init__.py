"""The command `pecker-fast`: sub-commands, exit codes, and one line for every foreseeable error.

Exit codes: 0 done, 1 a fault of the program, 2 bad input or surroundings, 3 parameters that were to
stay frozen have changed, 130 interrupted.
Nothing heavy is imported here: `--help` answers before torch is loaded, and the OpenMP settings
below must be in place when it is.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import click

from pecker_fast.cli.erase import distill, erase, mask
from pecker_fast.cli.evaluate import attack, compare, evaluate
from pecker_fast.cli.package import convert, info, recipes
from pecker_fast.cli.patch import patch
from pecker_fast.cli.sample import sample
from pecker_fast.cli.torchrun import has_report, is_first, one_voice, recorded, several
from pecker_fast.cli.train import train_classifier, train_teacher
from pecker_fast.errors import FrozenChangedError, PeckerError, printable
from pecker_fast.extras import missing_package
from pecker_fast.process import settle_process

__all__ = ["group", "main"]

DEBUG_VARIABLE = "PECKER_FAST_DEBUG"

_SHARED = {"distill", "erase", "evaluate", "sample", "train-teacher"}
"""Commands that several processes can share."""


class _InOrder(click.Group):
    """Lists the commands in the order in which a newcomer needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names as they were added."""
        return list(self.commands)


@click.group(
    cls=_InOrder,
    help="""Make a diffusion model forget a class, and prove it.

    \b
    pecker-fast demo        erase a class of a small model, in about a minute (pecker-fast-demo)
    pecker-fast erase MODEL --out RUN --forget cat --override dog
    """,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 internal error, 2 bad input, 3 frozen parameters changed, "
    "130 interrupted.",
)
@click.version_option(package_name="pecker-fast", message="pecker-fast %(version)s")
@click.pass_context
def group(ctx: click.Context) -> None:
    """The command line."""
    if several() and ctx.invoked_subcommand not in _SHARED:
        raise PeckerError(
            f"{ctx.invoked_subcommand}: runs in one process; start it without torchrun, which is "
            f"for {', '.join(sorted(_SHARED))}"
        )


with suppress(ModuleNotFoundError):  # a distribution of its own: pip install pecker-fast-demo
    from pecker_fast_demo.command import demo

    group.add_command(demo)
for _command in (
    mask, distill, erase, patch, sample, evaluate, attack, compare, convert, recipes, info,
    train_teacher, train_classifier,
):  # fmt: skip
    group.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (None: the process's own) and return the exit code."""
    settle_process()
    # What transformers says of packages that nothing here needs, and its bars over weights of 2 MB.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with one_voice():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        command: Callable[..., Any] = group.main
        if several():
            command = recorded(command, _explain)
        command(None if arguments is None else list(arguments), standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        if several():
            return _fail(error)
        if type(error).__name__ == "NoArgsIsHelpError":  # of click 8.2 and newer: the help
            error.show()
        else:
            click.UsageError(printable(error.format_message()), error.ctx).show()
        return 2
    except BrokenPipeError:
        # The reader of our output has left (`pecker-fast info | head -1`): not worth a word, but
        # the interpreter would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error)
    finally:
        # Good-bye to the other processes, or torch complains that nobody said it.
        distributed = sys.modules.get("torch.distributed")
        if distributed and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
    return 0


def _fail(error: BaseException) -> int:
    line, code = _explain(error)
    is_foreseen = isinstance(error, (click.ClickException, click.Abort, KeyboardInterrupt))
    if not is_foreseen and os.environ.get(DEBUG_VARIABLE):
        raise error
    if "tqdm" in sys.modules:
        # A bar that the error left open would share its line with the message.
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
    with suppress(OSError):  # stderr itself may be what is full
        if is_first():
            print(f"pecker-fast: {line}", file=sys.stderr, flush=True)
        elif not has_report():
            rank = os.environ["RANK"]
            print(f"pecker-fast (rank {rank}): {line}", file=sys.__stderr__, flush=True)
    return code


def _explain(error: BaseException) -> tuple[str, int]:
    """What is said of an error, in one line, and the exit code."""
    text, code = _cause(error)
    return printable(text), code


def _cause(error: BaseException) -> tuple[str, int]:
    if isinstance(error, (click.Abort, KeyboardInterrupt)):  # click makes an Abort of the other
        return str(error.__cause__ or error) or "interrupted", 130
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    # SafetensorError is how safetensors reports a full disk.
    if isinstance(error, PeckerError) or type(error).__name__ == "SafetensorError":
        code = 3 if isinstance(error, FrozenChangedError) else 2
        return str(error), code
    if isinstance(error, ModuleNotFoundError) and (line := missing_package(error)):
        return f"this command {line}", 2
    if isinstance(error, OSError):
        return _describe(error), 2
    if "torch" in sys.modules:
        from pecker_fast.machine import out_of_memory

        if line := out_of_memory(error):
            return f"{line}; free some, or use a machine with more", 2
    message = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
    return f"{message}; set {DEBUG_VARIABLE}=1 for the traceback", 1


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    remedies = {
        errno.ENOSPC: "free some space, then start the same command again",
        errno.EDQUOT: "free some space, then start the same command again",
        errno.EROFS: "choose another place with --out",
        errno.EACCES: "change its permissions or choose another place",
        errno.EPERM: "change its permissions or choose another place",
        errno.EISDIR: "it is a folder; name a file",
        errno.ENOTDIR: "a part of the path is a file; choose another path",
    }
    remedy = remedies.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + (f"; {remedy}" if remedy else "")
