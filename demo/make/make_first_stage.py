"""How the first stages of DiT and emoji were made: the same in one step.

    python demo/make/make_first_stage.py dit --run one-step --out dit_first_stage

A run that is there is taken up. Ten minutes on half a CPU core, and nine minutes on one.
`first_stage` is the run of `pecker-fast distill` itself.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import click
import torch
from pecker_fast_demo import dit_folder, emoji_folder

from pecker_fast.cli import shared
from pecker_fast.cli.common import prepare
from pecker_fast.erasure.api import run
from pecker_fast.erasure.request import Request
from pecker_fast.errors import PeckerError
from pecker_fast.files import write_text
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import DESCRIPTION, load_unet

RECIPES = {"dit": "demo_first_stage", "emoji": "demo_emoji_first_stage"}
KEPT = ("kind", "t_init", "iterations", "method", "frozen", "training")


@click.command()
@click.argument("what", type=click.Choice(list(RECIPES)))
@click.option("--run", "run_folder", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@shared.machine
def make(what: str, run_folder: Path, out: Path, device: str, threads: int | None) -> None:
    """Distil, and write both networks in half precision, whole or not at all."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    of_prompts = what == "emoji"
    run(
        Request(
            model=None if of_prompts else dit_folder(),
            pipeline=emoji_folder() if of_prompts else None,
            config=RECIPES[what], out=run_folder, device=place, command="distill",
        )
    )  # fmt: skip
    temporary = out.with_name(out.name + ".partial")
    if not of_prompts:
        for part in ("model", "pseudo_score"):
            made = ModelFolder.load(run_folder / part)
            replace(made, network=made.network.half()).save(temporary / part)
    else:
        for part in ("pipeline", "pseudo_score"):
            network, said = load_unet(run_folder / part)
            network.to(torch.float16).save_pretrained(temporary / part / "unet")
            about = {name: said[name] for name in KEPT if name in said}
            write_text(temporary / part / DESCRIPTION, json.dumps(about, indent=1) + "\n")
    os.replace(temporary, out)


if __name__ == "__main__":
    make()
