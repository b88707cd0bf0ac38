"""The demo: a class or a concept is erased from what ships with the package, and judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pecker_fast.data import first_stage_folder, pipeline_folder, teacher_folder
from pecker_fast.distill.config import RECIPES, load_config
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distributed import Ranks
from pecker_fast.erasure.classes import Distillation
from pecker_fast.erasure.concepts import Concept, Showing
from pecker_fast.erasure.run import Erasure, Site, carry_out
from pecker_fast.erasure.starts import load_start
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.concept import ConceptFigures, Recognition
from pecker_fast.evaluate.fashion_concept import fashion_concept, fashion_images
from pecker_fast.evaluate.forgetting import TeacherFigures
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.evaluate.judges import Judge
from pecker_fast.evaluate.previews import Previews
from pecker_fast.machine import usable_device
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.outputs import Clock

__all__ = ["demo", "demo_concept"]

PER_CLASS = 500
SNEAKER, BAG = 7, 8  # classes of Fashion-MNIST
NEIGHBOURS = ("a pair of ankle boots", "a sandal")
TEACHER_STEPS = 25  # of the text-to-image pipeline
CAPTIONS_PER_CLASS = 20  # in the evaluation; guided sampling of the original takes most of it


def demo(
    out: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    device: str | torch.device = "auto",
    started: float | None = None,
) -> Erasure[ModelFolder]:
    """Erase a class of the shipped Fashion-MNIST model into the run directory `out`; 3 minutes.

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
    judge = Judge(
        load_classifier(teacher_folder() / "classifier"),
        ClassStatistics.load(teacher_folder() / "statistics.safetensors"),
        per_class=PER_CLASS,
        teacher=TeacherFigures.from_dict(model.figures["teacher"]),
    )
    starts = {
        "generator": load_start(first_stage_folder(), "generator", model.unet),
        "pseudo_score": load_start(first_stage_folder(), "pseudo_score", model.unet),
    }
    return carry_out(Distillation(site, model, config, judge, starts))


def demo_concept(
    out: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    device: str | torch.device = "auto",
    started: float | None = None,
) -> Erasure[PipelineFolder]:
    """Erase sneakers, named by prompt, from the shipped pipeline; arguments as for `demo`."""
    recipe = "demo_concept"
    config = load_config(RECIPES / f"{recipe}.yaml", settings)
    place = usable_device(device)
    site = Site(out=out, device=place, force=force, clock=Clock(started))
    pipeline = PipelineFolder.load(pipeline_folder())
    classifier = load_classifier(teacher_folder() / "classifier").to(place)

    def measure(previews: Previews, told: TextConditions, erased: nn.Module) -> ConceptFigures:
        """What the classifier recognises in images of both, from captions of all kinds."""
        how, ranks = previews.sampling, Ranks()  # this process alone judges
        prompts = [pair.forget for concept in told.concepts for pair in concept]
        captions = fashion_concept(SNEAKER, BAG, CAPTIONS_PER_CLASS, how.seed, prompts)
        before = previews.original(captions.prompts, ranks)
        after = previews.erased(erased, captions.prompts, ranks)

        def recognised(images: torch.Tensor, words: str) -> Recognition:
            seen = fashion_images(images)
            return Recognition.measure(seen, captions, classifier, words, how.seed)

        return ConceptFigures(
            captions, recognised(before, how.original()), recognised(after, how.erased())
        )

    showing = Showing(recipe, NEIGHBOURS, TEACHER_STEPS, measure=measure)
    return carry_out(Concept(site, pipeline, config, showing))
