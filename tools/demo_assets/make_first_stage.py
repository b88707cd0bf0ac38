"""How the first stages in `data/` of DiT, pipeline and emoji were made: what ships, in one step.

    python tools/demo_assets/make_first_stage.py dit --run one-step --out dit_first_stage

A run that is there is taken up. Ten minutes on half a CPU core, a quarter of an hour on one, and
nine minutes; the figures of the pipeline before it take minutes more. `data/first_stage` is the run
of `pecker-fast distill` itself.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import click
import torch

from pecker_fast.cli.common import machine_options, prepare
from pecker_fast.data import dit_folder, emoji_folder, pipeline_folder
from pecker_fast.distill.config import load_config
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.erasure.api import run
from pecker_fast.erasure.demo import ORIGINAL_NAME, TEACHER_STEPS, shipped_judge
from pecker_fast.erasure.request import Request
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.previews import Previews
from pecker_fast.files import write_text
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import DESCRIPTION, PipelineFolder, load_unet
from pecker_fast.runs.digest import digest_of

RECIPES = {
    "dit": "demo_first_stage",
    "pipeline": "demo_concept_first_stage",
    "emoji": "demo_emoji_first_stage",
}
PIPELINES = {"pipeline": pipeline_folder, "emoji": emoji_folder}
KEPT = ("kind", "t_init", "iterations", "method", "frozen", "training")


@click.command()
@click.argument("what", type=click.Choice(list(RECIPES)))
@click.option("--run", "run_folder", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@machine_options
def make(what: str, run_folder: Path, out: Path, device: str, threads: int | None) -> None:
    """Distil, and write both networks in half precision, whole or not at all."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    of_prompts = what in PIPELINES
    run(
        Request(
            model=None if of_prompts else dit_folder(),
            pipeline=PIPELINES[what]() if of_prompts else None,
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
    if what == "pipeline":
        write_text(temporary / ORIGINAL_NAME, json.dumps(original_figures(place), indent=1) + "\n")
    os.replace(temporary, out)


def original_figures(device: torch.device) -> dict[str, object]:
    """What the classifier sees in the original pipeline's images, on the captions of the demo."""
    config = load_config("demo_concept")
    pipeline = PipelineFolder.load(pipeline_folder())
    conditions = Objective.from_pipeline(pipeline, config, device).conditions
    assert isinstance(conditions, TextConditions)
    judge = shipped_judge(config.seed, device)
    captions = judge.captions([pair.forget for each in conditions.concepts for pair in each])
    previews = Previews(pipeline, config, [], Path(), device, TEACHER_STEPS)
    found = judge.of_original(previews, captions)
    return {
        "captions": digest_of(captions.prompts),
        "sampler": found.sampler,
        "seed": found.seed,
        "groups": {name: [share.count, share.total] for name, share in found.groups.items()},
        "classes": {name: [share.count, share.total] for name, share in found.classes.items()},
        "seen_as": dict(found.seen_as),
    }


if __name__ == "__main__":
    make()
