"""How `pecker_fast/data/pipeline_first_stage` was made: the shipped pipeline in one step.

    python tools/demo_assets/make_pipeline_first_stage.py --run one-step --out pipeline_first_stage

A run that is there is taken up. A quarter of an hour on one core; the figures of the original take
minutes more.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from pecker_fast.cli.common import machine_options, prepare
from pecker_fast.data import pipeline_folder
from pecker_fast.distill.config import load_config
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.erasure.api import run
from pecker_fast.erasure.demo import (
    ORIGINAL_NAME,
    TEACHER_STEPS,
    shipped_judge,
)
from pecker_fast.erasure.request import Request
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.previews import Previews
from pecker_fast.files import write_text
from pecker_fast.models.pipeline import DESCRIPTION, PipelineFolder, load_unet
from pecker_fast.runs.digest import digest_of

RECIPE = "demo_concept_first_stage"
KEPT = ("kind", "t_init", "iterations", "method", "frozen", "training")


@click.command()
@click.option("--run", "run_folder", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@machine_options
def make(run_folder: Path, out: Path, device: str, threads: int | None) -> None:
    """Distil, halve both networks, and measure the original on the captions of the demo."""
    if out.exists():
        raise PeckerError(f"{out}: exists; name a new folder")
    place = prepare(device, threads)
    request = Request(
        pipeline=pipeline_folder(), config=RECIPE, out=run_folder, device=place, command="distill"
    )
    run(request)
    for part in ("pipeline", "pseudo_score"):
        network, said = load_unet(run_folder / part)
        network.to(torch.float16).save_pretrained(out / part / "unet")
        about = {name: said[name] for name in KEPT if name in said}
        write_text(out / part / DESCRIPTION, json.dumps(about, indent=1) + "\n")
    measure_original(out, place)


def measure_original(out: Path, device: torch.device) -> None:
    """Write what the classifier sees in the original's images."""
    config = load_config("demo_concept")
    pipeline = PipelineFolder.load(pipeline_folder())
    conditions = Objective.from_pipeline(pipeline, config, device).conditions
    assert isinstance(conditions, TextConditions)
    judge = shipped_judge(config.seed, device)
    captions = judge.captions([pair.forget for each in conditions.concepts for pair in each])
    found = judge.of_original(Previews(pipeline, config, [], out, device, TEACHER_STEPS), captions)
    content = {
        "captions": digest_of(captions.prompts),
        "sampler": found.sampler,
        "seed": found.seed,
        "groups": {name: [share.count, share.total] for name, share in found.groups.items()},
        "classes": {name: [share.count, share.total] for name, share in found.classes.items()},
        "seen_as": dict(found.seen_as),
    }
    write_text(out / ORIGINAL_NAME, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    make()
