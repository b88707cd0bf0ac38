"""`pecker_fast.erase`, and the same for a whole `Request`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pecker_fast.datasets import PUBLISHED_SPLIT
from pecker_fast.datasets.loading import ImageSet, read_images
from pecker_fast.datasets.prompt_files import read_prompt_file
from pecker_fast.distill.config import sets_guidance
from pecker_fast.distill.text_config import GuidanceSection
from pecker_fast.distributed import Ranks
from pecker_fast.erasure.classes import ClassTask
from pecker_fast.erasure.concepts import Concept, Showing
from pecker_fast.erasure.dry_run import try_out
from pecker_fast.erasure.erased import Erased
from pecker_fast.erasure.overrides import with_overrides
from pecker_fast.erasure.prompt_judges import judge_of
from pecker_fast.erasure.request import HUB_OPTIONS, Request
from pecker_fast.erasure.run import Site, Task, carry_out
from pecker_fast.erasure.starts import Role, StartNetwork, load_original, load_start
from pecker_fast.errors import PeckerError, PeckerTypeError
from pecker_fast.evaluate.judges import Judge
from pecker_fast.machine import usable_device
from pecker_fast.masks.files import saved_by_torch
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.models import ModelFolder
from pecker_fast.models.hub import hub_id_of, local_folder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.models.sources import hub_id_of_live, is_live, load_single_file, written
from pecker_fast.models.weights import of_variant
from pecker_fast.runs.directory import Clock
from pecker_fast.runs.dry_run import DryRun
from pecker_fast.runs.finding import find_pipeline

__all__ = ["class_task", "dry_run", "erase", "run"]


def erase(
    model: str | os.PathLike[str] | ModelFolder | PipelineFolder | Any,
    forget: str | int | Sequence[str | int] | None = None,
    override: str | int | Sequence[str | int] | None = None,
    *,
    out: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Erased:
    """Erase a class from a model, or concepts from a text-to-image pipeline; `pecker-fast erase`.

    Everything goes into the directory `out`: checkpoints, the mask, the erased model, figures. The
    same call again takes the run up where it was. Progress is shown on stderr.

    Args:
        model: a model folder, a run that made one, the folder of a diffusers pipeline, or the id
            `owner/name` of one on the Hugging Face hub; or a pipeline of diffusers in memory, which
            stays as it is, a `ModelFolder` or a `PipelineFolder`, whose network may be moved to the
            device of the run.
        forget: name or index of the class or classes; of a pipeline the concept or concepts, where
            the recipe leaves them open. None: the configuration's.
        override: what takes its place, one for all or one for each; of a class also "random", a
            kept class each time, "nearest" by the model's predictions, or "classifier", what that
            takes the class for.
        out: the run directory.
        config: a YAML file or the name of a shipped recipe. None: the published CIFAR-10 recipe.
        options: fields of `Request`, e.g. `classifier="judge"` for a report, `mask=`, `device=`,
            `force=True`, `trackers=`; of the hub `revision=`, `variant=`, `token=` and
            `local_files_only=`, as `from_pretrained` takes them. All others are settings of the
            configuration, e.g. `iterations=100`, `seed=1` or `**{"mask.density": 0.1}`.

    Returns:
        The erased model, its mask, the comparison of the frozen entries, and the report; it can be
        attacked, pushed to the hub, and loaded as a pipeline of diffusers.

    Raises:
        PeckerError: whatever cannot be used; nothing is written then. A run that fails later
            leaves its last checkpoint.

    Example:
        >>> from pecker_fast_demo import first_stage_folder, teacher_folder
        >>> erased = erase(
        ...     teacher_folder(), "Bag", "Coat", out="run", config="second_stage",
        ...     first_stage=first_stage_folder(), iterations=1,
        ... )
        >>> erased.frozen.frozen_changed, erased.model.kind
        (0, 'generator')
    """
    named = {field.name for field in fields(Request)}
    asked = {name: value for name, value in options.items() if name in named}
    settings = {name: value for name, value in options.items() if name not in named}
    for name, value in asked.items():
        if isinstance(value, str) and name in _PATHS:
            asked[name] = Path(value)
    of_hub = {name: asked[name] for name in HUB_OPTIONS if name in asked}
    asked.pop("revision", None)
    with _as_folder(model, Path(out), of_hub) as source:
        # A checkpoint in one file is a pipeline, too.
        prompts = "pipeline" in source or "pipeline_config" in asked
        given = {"pipeline": source.pop("model", None), **source} if prompts else source
        asked = {**given, **asked}
        asked |= {"names": _listed(forget)} if prompts else {"forget": forget}
        return run(
            Request(
                out=Path(out),
                config=None if config is None else os.fspath(config),
                settings={**settings, **asked.pop("settings", {})},
                overrides=_listed(override),
                **asked,
            )
        )


@contextmanager
def _as_folder(model: Any, out: Path, of_hub: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The model as `Request` takes it: as `pipeline` where it is told prompts, else as `model`."""
    if isinstance(model, (ModelFolder, PipelineFolder)):
        yield {"pipeline" if isinstance(model, PipelineFolder) else "model": model}
    elif isinstance(model, (str, os.PathLike)):
        folder = local_folder(Path(model), **of_hub)
        found = find_pipeline(folder)
        yield {"model": folder} if found is None else {"pipeline": found}
    elif is_live(model):
        with written(model, out) as folder:
            name = "model" if find_pipeline(folder) is None else "pipeline"
            yield {name: folder, "base_model": hub_id_of_live(model)}
    else:
        raise PeckerTypeError(
            "erase: the model must be a folder, an id of the hub, a pipeline of diffusers, a "
            f"ModelFolder or a PipelineFolder, got {type(model).__name__}"
        )


_PATHS = {each.name for each in fields(Request) if str(each.type).startswith(("Input", "Path"))}


def run(request: Request) -> Erased:
    """Do what is asked for; on every process that shares the run.

    Raises:
        PeckerError: whatever cannot be used.
    """
    with _on_disk(request) as found, of_variant(found.variant):
        return carry_out(_task(found))


def dry_run(request: Request) -> DryRun:
    """Say what `run` will take, and try two iterations; nothing is written.

    Raises:
        PeckerError: whatever cannot be used, or does not fit on this machine: the settings that
            would make it fit are named.
    """
    with _on_disk(request) as found, of_variant(found.variant):
        return try_out(_task(found))


@contextmanager
def _on_disk(request: Request) -> Iterator[Request]:
    """The same with a folder in place of an id of the hub, or of a checkpoint in one file."""
    if request.pipeline_config is None:
        yield request.fetched()
        return
    assert isinstance(request.pipeline, Path)  # checked there
    loaded = load_single_file(request.pipeline, request.pipeline_config)
    with written(loaded, request.out) as folder:
        del loaded
        yield replace(request, pipeline=folder, pipeline_config=None)


def _task(request: Request) -> Task:
    return _concept_task(request) if request.of_prompts else class_task(request)


def _real_images(
    request: Request, config: BaselineConfig, ranks: Ranks
) -> tuple[BaselineConfig, ImageSet]:
    """What a method is trained on, and its configuration with the name of the data set in it.

    Raises:
        PeckerError: no data set is named, or it cannot be read.
    """
    name = request.dataset or config.dataset
    if name is None:
        raise PeckerError(
            f"method {config.method} is trained on real images; name them: --dataset cifar10 "
            "--data-root FOLDER"
        )
    split = PUBLISHED_SPLIT.get(name, "train")
    images = read_images(ranks, name, request.data_root, split, request.download)
    return config.model_copy(update={"dataset": name}), images


def class_task(request: Request) -> ClassTask:
    """What is asked of a model folder, with everything loaded."""
    config = request.read_config()
    device = usable_device(request.device)
    ranks = Ranks.join(device.type)
    assert request.model is not None  # there is no pipeline
    model = load_original(request.model)
    site = _site(request, device, ranks, model.network)
    images = None
    if isinstance(config, BaselineConfig) and not config.data_free:
        config, images = _real_images(request, config, ranks)
    judge = _judge(request, model, device)
    if images is None:
        config = with_overrides(config, model, judge, device)
    starts = _starts(request, model.network)
    return ClassTask(site, model, config, judge, starts, images)


def _concept_task(request: Request) -> Concept:
    config = request.read_config()
    device = usable_device(request.device)
    ranks = Ranks.join(device.type)
    pipeline: Any = request.pipeline
    if not isinstance(pipeline, PipelineFolder):
        pipeline = PipelineFolder.load(pipeline, request.variant)
    if pipeline.has_guidance and not sets_guidance(request.config, request.settings):
        places = GuidanceSection.model_fields
        config = config.changed({f"text.guidance.{place}": 1.0 for place in places})
    site = _site(request, device, ranks, pipeline.network)
    starts = _starts(request, pipeline.network)
    showing = judge = None
    if request.prompts is not None:
        told = read_prompt_file(request.prompts)
        judge = judge_of(request, told, request.per_class, device)
    if request.previews:
        showing = Showing(str(request.config), request.teacher_steps, judge)
    return Concept(site, pipeline, config, showing, starts)


def _starts(request: Request, like: nn.Module) -> dict[str, StartNetwork]:
    """Networks that start elsewhere than at the teacher, by role."""
    paths: dict[Role, Path | None] = {
        "generator": request.generator or request.first_stage,
        "pseudo_score": request.pseudo_score or request.first_stage,
    }
    return {
        role: load_start(path, role, like, of_prompts=request.of_prompts)
        for role, path in paths.items()
        if path is not None
    }


def _site(request: Request, device: torch.device, ranks: Ranks, network: nn.Module) -> Site:
    """Where the run takes place, and the mask that it was given, in its file or SalUn's."""
    mask, source = request.mask, request.source
    if isinstance(mask, Path):
        read = SaliencyMask.from_dense if saved_by_torch(mask) else SaliencyMask.load
        mask = read(mask, network)
    return Site(
        out=request.out,
        device=device,
        ranks=ranks,
        mask=mask,
        force=request.force,
        clock=Clock(request.started),
        base_model=request.base_model or (hub_id_of(source) if isinstance(source, Path) else None),
        trackers=request.trackers,
    )


def _judge(request: Request, model: ModelFolder, device: torch.device) -> Judge | None:
    """The classifier that was named, with what it measures by."""
    if request.classifier is None:
        return None
    judge = Judge.load(
        request.classifier, request.statistics, None, None, class_names=model.class_names,
        model=model, device=device, second=request.second_classifier,
    )  # fmt: skip
    judge = replace(judge, per_class=request.per_class, teacher_steps=request.teacher_steps)
    if request.curve_per_class is not None:
        others = request.curve_per_class * (model.num_classes - 1)
        judge = replace(judge, curve_images=(request.curve_per_class, others))
    return judge


def _listed(given: str | int | Sequence[str | int] | None) -> tuple[Any, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, (str, int)) else tuple(given)
