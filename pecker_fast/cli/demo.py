"""`pecker-fast demo`: erase a class from the model that ships with the package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pecker_fast.cli.common import (
    config_overrides,
    machine_options,
    prepare,
    training_options,
)
from pecker_fast.errors import PeckerError

if TYPE_CHECKING:
    import torch

__all__ = ["demo"]

RECIPE = "demo"
PER_CLASS = 500

CONCEPT_RECIPE = "demo_concept"
SNEAKER, BAG = 7, 8  # classes of Fashion-MNIST
NEIGHBOURS = ("a pair of ankle boots", "a sandal")
TEACHER_STEPS = 25  # of the text-to-image pipeline
CAPTIONS_PER_CLASS = 20  # in the evaluation; guided sampling of the original takes most of it


@click.command(
    short_help="Erase a class of the shipped model and prove it.",
    epilog="""\b
Examples:
    pecker-fast demo
    pecker-fast demo --out bag --forget Bag --override Coat
    pecker-fast demo --out control --mask random --density 0.1
    pecker-fast demo --concept --out sneakers

\b
Classes: T-shirt, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot.
Needs no network, no data set and no GPU. An interrupted demo goes on when started again.
""",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Directory for the report, the pictures and the erased model.",
)
@click.option(
    "--concept",
    is_flag=True,
    help="Erase sneakers, named by prompt, from the shipped text-to-image pipeline.",
)
@training_options
@click.option("--iterations", type=int, help="Iterations of the distillation.")
@click.option("--force", is_flag=True, help="Delete the run that --out holds and start anew.")
@machine_options
def demo(
    out: Path,
    concept: bool,
    forget: str | None,
    override: str | None,
    density: float | None,
    kind: str | None,
    seed: int | None,
    settings: tuple[str, ...],
    iterations: int | None,
    force: bool,
    device: str,
    threads: int | None,
) -> None:
    """Erase a class of the shipped Fashion-MNIST model and prove it, in about 3 minutes."""
    started = time.monotonic()
    if concept:
        if forget is not None or override is not None:
            raise PeckerError(
                "demo: --concept forgets sneakers in favour of bags; for another concept use "
                "erase --pipeline with a recipe of your own"
            )
        values = config_overrides(None, None, density, kind, seed, settings, iterations)
        _demo_concept(out, values, force, device, threads, started)
        return
    overrides = config_overrides(forget, override, density, kind, seed, settings, iterations)

    from pecker_fast.cli.erase import print_report
    from pecker_fast.cli.erasing import erase_class
    from pecker_fast.cli.proof import conclude
    from pecker_fast.cli.run_files import MODEL_NAME
    from pecker_fast.data import teacher_folder
    from pecker_fast.distill.config import RECIPES, load_config
    from pecker_fast.evaluate.classifier import load_classifier
    from pecker_fast.evaluate.forgetting import TeacherFigures
    from pecker_fast.evaluate.frechet import ClassStatistics
    from pecker_fast.evaluate.run_judge import Judge
    from pecker_fast.models import ModelFolder

    config = load_config(RECIPES / f"{RECIPE}.yaml", overrides)
    place = prepare(device, threads)
    shipped = teacher_folder()
    folder = ModelFolder.load(shipped)
    judge = Judge(
        load_classifier(shipped / "classifier"),
        ClassStatistics.load(shipped / "statistics.safetensors"),
        PER_CLASS,
        teacher=TeacherFigures.from_dict(folder.figures["teacher"]),
    )
    frozen, report = erase_class(
        folder, config, out, place, force=force, judge=judge, started=started
    )
    print_report(report, out)
    click.echo(f"erased model  {out / MODEL_NAME}")
    conclude(frozen, out)


def _demo_concept(
    out: Path,
    values: dict[str, Any],
    force: bool,
    device: str,
    threads: int | None,
    started: float,
) -> None:
    """The demo with prompts."""
    from pecker_fast.cli.concept_showing import (
        Judges,
        Previews,
        prompt_groups,
        write_report,
    )
    from pecker_fast.cli.erasing_concept import PATCH_NAME, PIPELINE_NAME, erase_concept
    from pecker_fast.cli.proof import conclude
    from pecker_fast.data import pipeline_folder, teacher_folder
    from pecker_fast.distill.config import RECIPES, load_config
    from pecker_fast.distill.prompts import TextConditions
    from pecker_fast.evaluate.classifier import load_classifier
    from pecker_fast.evaluate.concept import ConceptFigures, Recognition
    from pecker_fast.evaluate.fashion_concept import fashion_concept, fashion_images
    from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
    from pecker_fast.models.pipeline import PipelineFolder

    config = load_config(RECIPES / f"{CONCEPT_RECIPE}.yaml", values)
    place = prepare(device, threads)
    pipeline = PipelineFolder.load(pipeline_folder())
    classifier = load_classifier(teacher_folder() / "classifier").to(place)
    shown: list[Previews] = []

    def previews(conditions: TextConditions) -> Previews:
        groups = prompt_groups(conditions, NEIGHBOURS)
        shown.append(Previews(pipeline, config, groups, out, place, TEACHER_STEPS))
        return shown[0]

    erased = erase_concept(
        pipeline, config, out, place, force=force, previews=previews, started=started
    )
    told = [pair.forget for c in erased.conditions.concepts for pair in c]
    captions = fashion_concept(SNEAKER, BAG, CAPTIONS_PER_CLASS, config.seed, told)
    sampler, how = PipelineSampler(pipeline, place), shown[0].sampling

    def recognised(latents: torch.Tensor, words: str) -> Recognition:
        images = fashion_images(sampler.images(latents))
        return Recognition.measure(images, captions, classifier, words, how.seed)

    original, unet = pipeline.unet.to(place).eval(), erased.unet.to(place).eval()
    before = sampler.many_steps(
        original, captions.prompts, how.seed, how.steps, how.guidance, progress="original model"
    )
    after = sampler.one_step(unet, captions.prompts, how.seed, how.t_init)
    figures = ConceptFigures(
        captions, recognised(before, how.original()), recognised(after, how.erased())
    )
    report = write_report(erased, pipeline, CONCEPT_RECIPE, shown[0], out, place, Judges(), figures)
    click.echo(report.headline())
    click.echo(report.kept_sentence())
    click.echo(f"report           {out / 'report.html'}")
    click.echo(f"erased pipeline  {out / PIPELINE_NAME}")
    click.echo(f"patch            {out / PATCH_NAME}")
    conclude(erased.frozen, out)
