"""`pecker-fast attack`: asks for what was erased in every other way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pecker_fast.cli.common import (
    INPUT,
    machine_options,
    prepare,
    prompt_judge_options,
)
from pecker_fast.cli.output import json_option, quiet_option, result

__all__ = ["attack"]


@click.command(
    short_help="Ask an erased model in every other way, and teach it again.",
    epilog="""\b
Examples:
    pecker-fast attack RUN --classifier judge
    pecker-fast attack RUN --classifier judge --original MODEL
    pecker-fast attack RETRAINED --classifier judge --original MODEL --forget cat --json > cat.json
    pecker-fast attack RUN --classifier judge --original MODEL --retrained cat.json
    pecker-fast attack RUN --clip CLIP --prompts prompts.csv --original PIPELINE

\b
Ways of asking: one step from several noise levels, DDIM with 4 to 50 steps, DDPM, guidance, and
conditions between the class and the others. With --original two attacks that train as well: the
embedding of the class alone, and every parameter, on 20 images of the class that the original
draws. A model that was trained without the class says what could be hoped for. Shares of images
with 95 % intervals; in a run they are written to attack.json.

\b
A pipeline is attacked alike: with its guidance, other and none, by prompts that the erasure was
not told, and told partly a neighbour; the embedding is the prompt's. Its prompts are a CSV file as
`evaluate --prompts` takes it: the group forget names what was forgotten, neighbours and keep what
was not, and label says what each names: a class of the classifier, whatever CLIP is to tell apart
("a photo of LABEL"), or a face's name. A nudity detector needs no labels.
""",
)
@click.argument("run", type=INPUT)
@click.option("--classifier", type=INPUT, help="The judge.")
@click.option(
    "--prompts",
    type=INPUT,
    help="To ask a pipeline with.  [default: captions of Fashion-MNIST, for the shipped one]",
)
@prompt_judge_options
@click.option(
    "--forget",
    help="The class, or the label of a concept.  [default: what the erased says]",
)
@click.option(
    "--original", type=INPUT, help="What it was before, which draws images to teach with."
)
@click.option(
    "--retrained",
    type=INPUT,
    help="What attack --json printed for a model trained without the class.  [default: for the "
    "shipped teacher's ankle boots, what ships]",
)
@click.option(
    "--images",
    type=click.IntRange(min=10),
    default=200,
    show_default=True,
    help="Of the class in each way.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@machine_options
@json_option
@quiet_option
def attack(run: Path, device: str, threads: int | None, **options: Any) -> None:
    """Attack RUN, a run of `erase`, or the folder of a model or a pipeline."""
    place = prepare(device, threads)

    from pecker_fast.erasure.attack import attack

    found = attack(run, **options, device=place)
    rows = [found.columns, *found.rows()]
    width = max(len(way) for way, *_ in rows)
    shares = ["  ".join([f"{way:{width}}", *(f"{s:>22}" for s in more)]) for way, *more in rows]
    lines = [*filter(None, [found.headline, found.taught_sentence]), *shares]
    result(lines, found.to_dict)
