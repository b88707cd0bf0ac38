"""`pecker-fast distill`: the first of two stages, once a model; any number of erasures share it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from pecker_fast.cli.common import (
    MODEL_ARGUMENT,
    PATH,
    config_values,
    machine_options,
    prepare,
    seed_option,
    settings_option,
)
from pecker_fast.cli.torchrun import is_first

__all__ = ["distill"]


@click.command(
    short_help="Distil a model into one step, for erasures to start from.",
    epilog="""\b
Examples:
    pecker-fast distill MODEL --out one-step
    pecker-fast erase MODEL --from one-step --forget cat --override dog --out run

\b
--out receives checkpoints and, at the end, the one-step generator as a folder `model` and the
network that knows its scores as a folder `pseudo_score`. Stopped, it goes on when the same command
is started again. The default recipe is cifar10_stage1, 50,000 iterations of 128 images.
""",
)
@MODEL_ARGUMENT
@click.option("--out", type=PATH, required=True, help="Run directory.")
@click.option(
    "--config", default="cifar10_stage1", show_default=True, help="YAML file or name of a recipe."
)
@click.option("--iterations", type=int, help="Length of the run.")
@seed_option
@settings_option("batch_size=16")
@click.option("--force", is_flag=True, help="Delete the run that --out holds and start anew.")
@machine_options
def distill(model: Path, device: str, threads: int | None, **options: Any) -> None:
    """Distil the model folder MODEL into a one-step generator that forgets nothing yet."""
    from pecker_fast.erasure.request import Request

    started = time.monotonic()
    request = Request(
        model=model,
        settings={**config_values(options), **NOTHING_FORGOTTEN},
        device=device,
        started=started,
        command="distill",
        **options,
    )
    prepare(device, threads)

    from pecker_fast.erasure.api import run

    erasure = run(request)
    if is_first():
        click.echo(f"first stage      {erasure.out}")


NOTHING_FORGOTTEN = {
    "forget": None,
    "mask.kind": "full",
    "generator.lambda_forget": 0.0,
    "pseudo_score.lambda_forget": 0.0,
    "first_stage": "none",
    "until": None,
}
"""What makes a first stage out of any recipe for classes."""
