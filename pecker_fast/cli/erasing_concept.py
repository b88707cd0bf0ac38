"""One erasure of concepts from a text-to-image pipeline: prompts, distillation, pipeline, patch.

Everything goes into one run directory; the same call on the same directory resumes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import click
import torch
from torch import Tensor, nn

from pecker_fast import backends
from pecker_fast.cli.proof import conclude, prove_frozen
from pecker_fast.cli.run_files import FROZEN_NAME, Clock, run_directory
from pecker_fast.cli.stopping import saving_at_interrupt
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.distill.objective import Objective
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.distill.trainer import PeckerTrainer
from pecker_fast.distributed import Ranks
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FrozenCheck
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.patches.patch import save_patch

__all__ = ["PATCH_NAME", "PIPELINE_NAME", "Erased", "Preview", "erase_concept"]

PIPELINE_NAME = "pipeline"
PATCH_NAME = "patch.safetensors"
OUTPUTS = (FROZEN_NAME, PATCH_NAME, "report.json", "report.html", "before_after.png")


class Preview(Protocol):
    """Draws images of a run; all processes make each call, and the first one keeps the images."""

    def show(self, generator: nn.Module, iteration: int, ranks: Ranks) -> None:
        """Show the generator as it is after so many iterations."""

    def compare(self, unet: nn.Module, ranks: Ranks) -> tuple[Tensor, Tensor] | None:
        """Images of the original and of the erased network; None on the other processes."""


@dataclass(frozen=True)
class Erased:
    """What a run has made.

    Attributes:
        unet: the erased network, in the precision of the pipeline.
        trainer: the run, finished.
        frozen: what moved and what did not.
        patch_bytes: size of the patch.
        unet_bytes: size of the network's file in the new pipeline.
        stage_s: seconds by stage.
        wall_s: seconds in all, before `images` are drawn.
        resumed_at: iteration at which this process took the run up.
        backend: of the optimizer.
        conditions: the prompts.
        images: those of `Preview.compare`; None without previews and on all processes but the
            first.
    """

    unet: nn.Module
    trainer: PeckerTrainer
    frozen: FrozenCheck
    patch_bytes: int
    unet_bytes: int
    stage_s: dict[str, float]
    wall_s: float
    resumed_at: int
    backend: str
    conditions: TextConditions
    images: tuple[Tensor, Tensor] | None


def erase_concept(
    pipeline: PipelineFolder,
    config: PeckerConfig,
    out: Path,
    device: torch.device,
    *,
    force: bool = False,
    mask: SaliencyMask | None = None,
    generator: nn.Module | None = None,
    previews: Callable[[TextConditions], Preview] | None = None,
    count: int = 6,
    started: float | None = None,
    ranks: Ranks | None = None,
) -> Erased:
    """Erase the concepts of `config.text` from `pipeline` into the run directory `out`.

    Args:
        pipeline: the teacher.
        config: the run.
        out: where everything goes: checkpoints, the erased pipeline and the patch. The run that it
            holds is taken up.
        device: where to work.
        force: delete the run that `out` holds instead.
        mask: instead of the one that `config.mask` describes.
        generator: where the one-step generator starts, which the patch then belongs to. None: the
            teacher.
        previews: makes what shows the generator at the start and `count` times, and compares it
            with the original at the end.
        count: how often.
        started: `time.monotonic()` at the start of the command. None: now.
        ranks: the processes that share the run, all of which make this call. None: this one.

    Raises:
        FrozenChangedError: A frozen entry has changed; there is a pipeline but no patch.
    """
    ranks = ranks or Ranks()
    clock = Clock(started)
    with clock.stage("prompts"):
        objective = Objective.from_pipeline(pipeline, config, device)
    conditions = objective.conditions
    assert isinstance(conditions, TextConditions)  # a pipeline's are
    backend = backends.name_of(backends.select(config.optimizer.backend, device))
    if mask is not None:
        mask.check(dict(pipeline.unet.named_parameters()))
    with run_directory(out, force, ranks) as directory:
        if directory is not None:
            _clear(out)
            if force:
                # Not what this launch itself has drawn, where torchrun starts it anew.
                ranks.once(f"removed the images of {out.resolve()}", lambda: _clear_images(out))
        with clock.stage("mask"):
            trainer = PeckerTrainer(
                objective,
                generator=generator,
                mask=mask,
                run_directory=directory,
                progress=True,
                ranks=ranks,
            )
        pairs = sum(map(len, conditions.concepts))
        click.echo(
            f"{pairs} prompts to forget, {len(conditions.remain)} to keep; "
            + "; ".join(trainer.notes),
            err=True,
        )
        resumed_at = trainer.iteration
        if resumed_at:
            click.echo(f"resuming at iteration {resumed_at} of {config.iterations}", err=True)
        preview = None if previews is None else previews(conditions)
        with clock.stage("erase"):
            _train(trainer, preview, count, ranks)
        with clock.stage("save"):
            unet = trainer.ema_generator().to("cpu")
            frozen = prove_frozen(trainer, unet, out, ranks)
            sizes = ranks.first(lambda: _save(pipeline, trainer, unet, frozen, conditions, out))
    wall_s = clock.total()
    images = None if preview is None else preview.compare(unet.to(device), ranks)
    return Erased(
        unet,
        trainer,
        frozen,
        sizes[0],
        sizes[1],
        clock.stages,
        wall_s,
        resumed_at,
        backend,
        conditions,
        images,
    )


def _clear(out: Path) -> None:
    """Remove the results of an earlier state, which must not stand beside new ones."""
    for name in OUTPUTS:
        (out / name).unlink(missing_ok=True)


def _clear_images(out: Path) -> None:
    """Remove what an earlier run drew as it went, and its pipeline."""
    shutil.rmtree(out / PIPELINE_NAME, ignore_errors=True)
    for name in ("progress.png", "previews.safetensors"):
        (out / name).unlink(missing_ok=True)


def _save(
    pipeline: PipelineFolder,
    trainer: PeckerTrainer,
    unet: nn.Module,
    frozen: FrozenCheck,
    conditions: TextConditions,
    out: Path,
) -> list[int]:
    """Write the erased pipeline and the patch; returns the bytes of patch and network.

    Raises:
        FrozenChangedError: A frozen entry has changed, which no patch can hold.
    """
    t_init = trainer.config.diffusion.t_init
    description = {
        **pipeline.description,
        "kind": "generator",
        "t_init": t_init,
        "forget": sorted({pair.forget for c in conditions.concepts for pair in c})[:50],
        "iterations": trainer.iteration,
        "mask_digest": trainer.mask.digest,
    }
    pipeline.save_with(unet, out / PIPELINE_NAME, description)
    if frozen.frozen_changed:
        conclude(frozen, out)
    about = {"iterations": trainer.iteration, "t_init": t_init}
    save_patch(out / PATCH_NAME, trainer.start, unet, trainer.ever_salient, **about)
    network = (out / PIPELINE_NAME / "unet").glob("*.safetensors")
    return [(out / PATCH_NAME).stat().st_size, sum(file.stat().st_size for file in network)]


def _train(trainer: PeckerTrainer, preview: Preview | None, count: int, ranks: Ranks) -> None:
    """Run the distillation, with a look at the generator now and then."""
    total = trainer.config.iterations
    shown_at = {round(total * index / count) for index in range(1, count + 1)}

    if preview is not None and trainer.iteration == 0:
        preview.show(trainer.generator, 0, ranks)
    run = saving_at_interrupt(trainer.run(), lambda: trainer.iteration, trainer.save, ranks)
    for metrics in run:
        if preview is not None and metrics.iteration in shown_at:
            preview.show(trainer.generator, metrics.iteration, ranks)
