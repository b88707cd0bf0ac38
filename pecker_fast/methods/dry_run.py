"""What training a teacher will take, before it is started: `runs/dry_run.py` of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.methods.teacher import TeacherTrainer, build_network
from pecker_fast.methods.training_config import TeacherConfig
from pecker_fast.progress import quiet
from pecker_fast.runs.dry_run import DryRun, Trial, try_out
from pecker_fast.runs.memory_model import Peak, model_peak, outside, replaced

__all__ = ["try_teacher"]


def try_teacher(images: ImageSet, config: TeacherConfig, device: torch.device, out: Path) -> DryRun:
    """Compute what a run of `TeacherTrainer` takes, then try two iterations; nothing is written.

    Raises:
        PeckerError: it does not fit; one line, with the settings that make it fit. Or what the
            trainer refuses.
    """
    if config.without is not None:  # which images these are cannot be found without values
        images = images.without(images.class_index(config.without))
        config = config.changed({"without": None})
    with torch.device("meta"):
        network = build_network(images.image_shape, images.num_classes, config)

    def start(values: Mapping[str, Any]) -> TeacherTrainer:
        return TeacherTrainer(images, config.changed(values), device)

    def model(values: Mapping[str, Any]) -> Peak:
        # Fused blocks launch kernels; Winograd's convolutions say their shapes.
        blocks = {"accelerate": config.accelerate and device.type == "cpu"}
        checks = (  # of values
            (ImageSet, "__post_init__", lambda _: None),
            (NoiseSchedule, "from_scheduler", outside(NoiseSchedule.from_scheduler)),
        )
        with replaced(*checks), quiet():
            return model_peak(lambda _: start({**values, **blocks}), device)

    return try_out(
        Trial(
            config=config,
            device=device,
            out=out,
            network=network,
            held=images.images.nbytes,
            model=model,
            start=start,
            result_bytes=sum(param.nbytes for param in network.parameters()),
        )
    )
