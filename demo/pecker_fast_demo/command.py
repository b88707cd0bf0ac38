"""`pecker-fast demo`: erase a class from the model that is in this package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pecker_fast.cli import shared
from pecker_fast.cli.common import config_values, prepare
from pecker_fast.cli.erase import say
from pecker_fast.cli.shared import PATH, command, flag, option
from pecker_fast.errors import PeckerError
from pecker_fast.runs.finding import check_run_directory

__all__ = ["demo"]


@command(
    option(
        "--out", "Directory for the report, the pictures and the erased model.", PATH,
        default=Path("demo-run"),
    ),
    flag(
        "--concept", "Erase dogs, named by prompt, from the text-to-image pipeline of emoji."
    ),
    shared.training,
    shared.iterations,
    shared.run,
    shared.json,
    shared.quiet,
    examples="""
    pecker-fast demo
    pecker-fast demo --out bag --forget Bag --override Coat
    pecker-fast demo --out control --mask random --density 0.1
    pecker-fast demo --concept --out dogs

Classes: T-shirt, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot.
Needs no network, no data set and no GPU. An interrupted demo goes on when started again.
""",
)  # fmt: skip
def demo(
    out: Path, concept: bool, force: bool, device: str, threads: int | None, **options: Any
) -> None:
    """Erase a class of the shipped model and prove it."""
    from pecker_fast.distill.config import load_config

    started = time.monotonic()
    values = config_values(options)
    if options["forget"]:
        values["forget"] = options["forget"][-1]
    if options["overrides"]:
        values["override"] = options["overrides"][-1]
    if concept and {"forget", "override"} & values.keys():
        raise PeckerError(
            "demo: --concept forgets dogs in favour of cats; for another concept use "
            "erase --pipeline with a recipe of your own"
        )
    load_config("demo_emoji_object" if concept else "second_stage", values)
    check_run_directory(out)
    prepare(device, threads)

    from pecker_fast_demo.demo import demo, demo_concept

    work = demo_concept if concept else demo
    say(work(out, values, force=force, device=device, started=started))
