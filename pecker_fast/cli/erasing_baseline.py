"""One erasure by a baseline: the same run directory, report and figures as a distillation's.

What differs: it is trained on real images, and its result is a many-step model like the original,
drawn by the same sampler.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from pecker_fast.cli.data_options import read_images
from pecker_fast.cli.erasing import Erasure, carry_out
from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.report import ErasureReport
from pecker_fast.evaluate.run_judge import Judge
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FrozenCheck
from pecker_fast.methods.config import BaselineConfig
from pecker_fast.methods.mask_finding import find_mask
from pecker_fast.methods.objective import BaselineObjective
from pecker_fast.methods.trainer import BaselineTrainer
from pecker_fast.models import ModelFolder
from pecker_fast.runs.checkpoint import RunDirectory

__all__ = ["baseline_images", "baseline_mask", "erase_by_baseline"]


def baseline_images(
    config: BaselineConfig,
    dataset: str | None,
    root: Path | None,
    download: bool,
    ranks: Ranks | None = None,
) -> tuple[BaselineConfig, ImageSet]:
    """The real images of a run, and its configuration with the name of their data set in it.

    Args:
        config: the run; its `dataset` counts where `dataset` is None.
        dataset: --dataset.
        root: --data-root.
        download: --download.
        ranks: the processes that share the run, all of which make this call. None: this one.

    Raises:
        PeckerError: no data set is named, or it cannot be read.
    """
    name = dataset or config.dataset
    if name is None:
        raise PeckerError(
            f"method {config.method} is trained on real images; name them: --dataset cifar10 "
            "--data-root FOLDER"
        )
    images = read_images(ranks or Ranks(), name, root, config.split, download)
    return config.model_copy(update={"dataset": name}), images


def erase_by_baseline(
    model: ModelFolder,
    images: ImageSet,
    config: BaselineConfig,
    out: Path,
    device: torch.device,
    *,
    force: bool = False,
    mask: SaliencyMask | None = None,
    judge: Judge | None = None,
    started: float | None = None,
    ranks: Ranks | None = None,
) -> tuple[FrozenCheck, ErasureReport | None]:
    """Erase `config.forget` from `model` by `config.method` into the run directory `out`.

    Args:
        model: the model that must forget.
        images: what it was trained on, of all classes.
        config: the run.
        out: where everything goes; the run that it holds is taken up.
        device: where to work.
        force: delete the run that `out` holds instead.
        mask: instead of the one that `config.mask` describes.
        judge: None for no evaluation and no report.
        started: `time.monotonic()` at the start of the command (None: now), for `wall_s`.
        ranks: the processes that share the run, all of which make this call. None: this one.

    Returns:
        The proof, and the report: None without a judge and on all processes but the first.

    Raises:
        PeckerError: images that do not fit the model, a class that it does not have, a mask of
            another model, or a directory that holds another run.
    """
    ranks = ranks or Ranks()
    steps = (
        50
        if judge is None
        else judge.teacher_steps
        if judge.teacher is None
        else judge.teacher.steps
    )
    if steps == 1:
        raise PeckerError(
            f"method {config.method} gives a many-step model: --teacher-steps must be at least 2"
        )
    # What is wrong with images, classes, backend or mask comes out before any writing.
    objective = BaselineObjective(model, images, config, device)
    chosen = objective.images

    def start(directory: RunDirectory | None) -> BaselineTrainer:
        return BaselineTrainer(
            objective, mask=mask, run_directory=directory, progress=True, ranks=ranks
        )

    def finish(trainer: BaselineTrainer) -> ModelFolder:
        figures = {
            "method": config.method,
            "forget": model.class_names[chosen.forget],
            "iterations": trainer.iteration,
            "mask_digest": trainer.mask.digest,
            "images": images.source,
        }
        return replace(model.with_network(trainer.erased_network(), "teacher"), figures=figures)

    erasure = Erasure(
        model=model,
        config=config,
        forget=chosen.forget,
        override=chosen.override,
        sampler=Sampler(steps, config.seed),
        start=start,
        finish=finish,
        images=images.source,
    )
    return carry_out(
        erasure, out, device, force=force, mask=mask, judge=judge, started=started, ranks=ranks
    )


def baseline_mask(
    model: ModelFolder, images: ImageSet, config: BaselineConfig, device: torch.device
) -> SaliencyMask:
    """The mask that a run of this configuration would find; SalUn's, with its constants.

    Raises:
        PeckerError: images that do not fit the model, or a class that it does not have.
    """
    objective = BaselineObjective(model, images, config, device)
    return find_mask(objective, model.unet.to(device).requires_grad_(True), progress=True)
