"""What a command says and in which form: --quiet, --json, --print-config."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.cli.common import echo
from pecker_fast.cli.torchrun import is_first, several
from pecker_fast.errors import PeckerError
from pecker_fast.progress import quiet

if TYPE_CHECKING:
    from pecker_fast.runs.settings import Settings

__all__ = [
    "dry_run_option", "json_option", "print_config_option", "quiet_option", "result", "say_config",
]  # fmt: skip

_JSON = f"{__name__}.json"


def _be_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.with_resource(quiet())


def _want_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[_JSON] = value


def _alone(_: click.Context, param: click.Parameter, value: bool) -> bool:
    if value and several():
        raise PeckerError(f"{param.opts[0]}: runs in one process; start it without torchrun")
    return value


quiet_option = click.option(
    "--quiet",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_be_quiet,
    help="No progress and no notes on stderr; errors and the result as ever.",
)
json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_want_json,
    help="The result as JSON on stdout.",
)
print_config_option = click.option(
    "--print-config",
    is_flag=True,
    callback=_alone,
    help="Print all settings as YAML that --config takes, and do nothing else.",
)
dry_run_option = click.option(
    "--dry-run",
    is_flag=True,
    callback=_alone,
    help="Say which memory, time and disk the run takes, by two iterations; nothing is written. "
    "What does not fit is refused.",
)


def result(lines: Iterable[object], content: Callable[[], Any]) -> None:
    """Say what came of a command: lines to read, or JSON.

    Args:
        lines: for stdout.
        content: the same in plain types and paths.
    """
    if not is_first():
        return  # one process speaks for all
    if click.get_current_context().meta.get(_JSON):
        click.echo(json.dumps(content(), indent=2, ensure_ascii=False, default=str))
        return
    for line in lines:
        echo(line)


def say_config(config: Settings) -> None:
    """Print a configuration."""
    click.echo(config.to_yaml(), nl=False)
