"""How `pecker_fast/data/dit_first_stage` was made: the shipped DiT in one step.

    python tools/demo_assets/make_dit_first_stage.py --run one-step --out dit_first_stage

A run that is there is taken up. Ten minutes on half a CPU core.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click

from pecker_fast.cli.common import machine_options, prepare
from pecker_fast.data import dit_folder
from pecker_fast.erasure.api import run
from pecker_fast.erasure.request import Request
from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder

RECIPE = "demo_first_stage"


@click.command()
@click.option("--run", "run_folder", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@machine_options
def make(run_folder: Path, out: Path, device: str, threads: int | None) -> None:
    """Distil, and write both networks in half precision, whole or not at all."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    run(Request(model=dit_folder(), config=RECIPE, out=run_folder, device=place, command="distill"))
    temporary = out.with_name(out.name + ".partial")
    for part in ("model", "pseudo_score"):
        made = ModelFolder.load(run_folder / part)
        replace(made, network=made.network.half()).save(temporary / part)
    os.replace(temporary, out)


if __name__ == "__main__":
    make()
