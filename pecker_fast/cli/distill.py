"""`pecker-fast distill`: the first of two stages, once a model; any number of erasures share it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from pecker_fast.cli.common import (
    PATH,
    SOURCE_ARGUMENT,
    config_values,
    hub_options,
    run_options,
    seed_option,
    settings_option,
)
from pecker_fast.cli.erase import carried_out
from pecker_fast.cli.output import (
    dry_run_option,
    json_option,
    print_config_option,
    quiet_option,
    result,
)
from pecker_fast.runs.finding import find_pipeline, is_hub_id

__all__ = ["distill"]


@click.command(
    short_help="Distil a model into one step, for erasures to start from.",
    epilog="""\b
Examples:
    pecker-fast distill MODEL --out one-step
    pecker-fast erase MODEL --from one-step --forget cat --override dog --out run
    pecker-fast distill SD15 --set text.remain=captions.txt --out one-step
    pecker-fast erase --pipeline SD15 --from one-step --recipe nudity --out run

\b
--out receives checkpoints and, at the end, the one-step generator as a folder `model` (of a
pipeline `pipeline`) and the network that knows its scores as a folder `pseudo_score`. Stopped, it
goes on when the same command is started again. The default recipe is cifar10_stage1, 50,000
iterations of 128 images; of a pipeline text_stage1, 16,000 of 512.
""",
)
@SOURCE_ARGUMENT
@hub_options
@click.option("--out", type=PATH, required=True, help="Run directory.")
@click.option(
    "--config",
    help="YAML file or name of a recipe.  [default: cifar10_stage1; of a pipeline text_stage1]",
)
@click.option("--iterations", type=int, help="Length of the run.")
@seed_option
@settings_option("batch_size=16")
@run_options
@dry_run_option
@print_config_option
@json_option
@quiet_option
def distill(model: Path, device: str, threads: int | None, **options: Any) -> None:
    """Distil MODEL, a model folder or a pipeline, into one step; nothing is forgotten yet."""
    from pecker_fast.erasure.request import HUB_OPTIONS, Request

    started = time.monotonic()
    if is_hub_id(str(model)):  # whether it is a pipeline is seen in its files
        from pecker_fast.models.hub import local_folder

        model = local_folder(
            model, **{name: options[name] for name in HUB_OPTIONS if name in options}
        )
        options.pop("revision")
    dry, printing = options.pop("dry_run"), options.pop("print_config")
    pipeline = find_pipeline(model)
    recipe = options.pop("config") or ("cifar10_stage1" if pipeline is None else "text_stage1")
    nothing: dict[str, Any] = {"forget": None} if pipeline is None else {"text.concepts": []}
    request = Request(
        model=model if pipeline is None else None,
        pipeline=pipeline,
        config=recipe,
        settings={**config_values(options), **nothing, **NOTHING_FORGOTTEN},
        device=device,
        started=started,
        command="distill",
        **options,
    )
    if (erasure := carried_out(request, threads, dry, printing)) is not None:
        facts = erasure.facts
        result([f"first stage      {erasure.out}"], lambda: {"out": erasure.out, **facts.to_dict()})


NOTHING_FORGOTTEN = {
    "mask.kind": "full",
    "generator.lambda_forget": 0.0,
    "pseudo_score.lambda_forget": 0.0,
    "first_stage": "none",
    "until": None,
}
"""What makes a first stage out of any recipe, besides that it names nothing to forget."""
