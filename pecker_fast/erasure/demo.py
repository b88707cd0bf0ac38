"""The demo: a class or a concept is erased from what ships with the package, and judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pecker_fast.data import (
    first_stage_folder,
    pipeline_first_stage_folder,
    pipeline_folder,
    teacher_folder,
)
from pecker_fast.datasets.fashion_mnist import CLASS_NAMES
from pecker_fast.distill.config import RECIPES, PeckerConfig, load_config
from pecker_fast.erasure.classes import Distillation
from pecker_fast.erasure.concepts import Concept, Showing
from pecker_fast.erasure.prompt_judges import PromptJudge
from pecker_fast.erasure.run import Erased, Site, carry_out
from pecker_fast.erasure.starts import Role, StartNetwork, load_start
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.concept import ConceptCaptions
from pecker_fast.evaluate.fashion_concept import fashion_concept, fashion_images, fashion_probe
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.naming import by_classifier
from pecker_fast.evaluate.recognition import Recognition
from pecker_fast.evaluate.reference import ClassFigures, real_beside
from pecker_fast.files import read_json
from pecker_fast.machine import usable_device
from pecker_fast.methods.config import RECIPES as METHODS
from pecker_fast.methods.config import BaselineConfig, load_baseline_config
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.digest import digest_of
from pecker_fast.runs.outputs import Clock

__all__ = ["demo", "demo_concept"]

PER_CLASS = 500
SNEAKER, BAG = 7, 8  # classes of Fashion-MNIST
NEIGHBOURS = ("a pair of ankle boots", "a sandal")
TEACHER_STEPS = 25  # of the text-to-image pipeline
CAPTIONS_PER_CLASS = 100  # in the evaluation, of the classes to keep
CAPTIONS_OF_CONCEPT = 200  # that were told, and as many that were held back
ORIGINAL_NAME = "original.json"  # what the classifier sees in the original's images of these


def demo(
    out: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    device: str | torch.device = "auto",
    started: float | None = None,
) -> Erased[ModelFolder]:
    """Erase a class of the shipped Fashion-MNIST model into the run directory `out`; 1 minute.

    Args:
        out: where everything goes; the run that it holds is taken up.
        settings: dotted keys that are laid over the recipe `demo`, e.g. `{"forget": "Bag"}`.
        force: delete that run instead.
        device: where to work.
        started: `time.monotonic()` at the start of the command. None: now.

    Raises:
        PeckerError: an unknown class or setting, or a directory that holds other things.

    Example:
        >>> demo(Path("demo"), {"iterations": 1}).report.gone
        False
    """
    config = load_config(RECIPES / "demo.yaml", settings)
    site = Site(out=out, device=usable_device(device), force=force, clock=Clock(started))
    model = ModelFolder.load(teacher_folder())
    classifier = teacher_folder() / "classifier"
    judge = Judge(
        load_classifier(classifier),
        ClassStatistics.load(teacher_folder() / "statistics.safetensors"),
        per_class=PER_CLASS,
        real_figures=real_beside(classifier),
        teacher=ClassFigures.from_dict(model.figures["teacher"]),
    )
    starts = {
        "generator": load_start(first_stage_folder(), "generator", model.network),
        "pseudo_score": load_start(first_stage_folder(), "pseudo_score", model.network),
    }
    return carry_out(Distillation(site, model, config, judge, starts))


def demo_concept(
    out: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    keep_steps: bool = False,
    force: bool = False,
    device: str | torch.device = "auto",
    started: float | None = None,
) -> Erased[PipelineFolder]:
    """Erase sneakers, named by prompt, from the shipped pipeline; arguments as for `demo`.

    With `keep_steps` by the recipe `demo_concept_keep_steps`, in many steps as before.
    """
    config: PeckerConfig | BaselineConfig
    if keep_steps:
        recipe = "demo_concept_keep_steps"
        config = load_baseline_config(METHODS / f"{recipe}.yaml", settings)
    else:
        recipe = "demo_concept"
        config = load_config(RECIPES / f"{recipe}.yaml", settings)
    place = usable_device(device)
    site = Site(out=out, device=place, force=force, clock=Clock(started))
    pipeline = PipelineFolder.load(pipeline_folder())
    judge = shipped_judge(config.seed, place)
    showing = Showing(recipe, NEIGHBOURS, TEACHER_STEPS, judge=judge)
    roles: tuple[Role, ...] = () if keep_steps else ("generator", "pseudo_score")
    starts: dict[str, StartNetwork] = {
        role: load_start(pipeline_first_stage_folder(), role, pipeline.network, of_prompts=True)
        for role in roles
    }
    return carry_out(Concept(site, pipeline, config, showing, starts))


def shipped_judge(seed: int, device: torch.device) -> PromptJudge:
    """The shipped classifier, for captions of Fashion-MNIST drawn by `seed`."""
    folder = teacher_folder() / "classifier"
    real = real_beside(folder)
    return PromptJudge(
        by_classifier(load_classifier(folder).to(device), fashion_images),
        lambda told: fashion_concept(
            SNEAKER, BAG, CAPTIONS_PER_CLASS, seed, told, CAPTIONS_OF_CONCEPT
        ),
        lambda told, images: fashion_probe(SNEAKER, told, images, seed + 1),
        shipped_original,
        None if real is None else real.recognition(tuple(CLASS_NAMES), SNEAKER),
    )


def shipped_original(captions: ConceptCaptions, sampler: str) -> Recognition | None:
    """What ships of `PromptJudge.of_original`; None for other captions, or another sampler."""
    content = read_json(pipeline_first_stage_folder() / ORIGINAL_NAME)
    if content["captions"] != digest_of(captions.prompts) or content["sampler"] != sampler:
        return None
    groups, classes = (
        {name: Share(*counts) for name, counts in content[part].items()}
        for part in ("groups", "classes")
    )
    return Recognition(groups, classes, content["seen_as"], sampler, content["seed"])
