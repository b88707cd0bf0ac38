"""Train a class-conditional DDPM on images: the teacher that classes are erased from.

Published training (SA, SalUn, SFD): the noise in x_t is predicted, the squared error summed over an
image's pixels and averaged over the batch, with antithetic time steps, and the class left out for
some images so that guidance has a "no class" to compare with.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distill.losses import pseudo_score_loss
from pecker_fast.distill.networks import predict_noise, with_autocast
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.machine import machine_facts, versions
from pecker_fast.methods.image_batches import ShuffledEpochs, antithetic_timesteps
from pecker_fast.methods.training_config import DenoiserSection, TeacherConfig
from pecker_fast.methods.training_loop import LossOf, Training
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.published import published_scheduler
from pecker_fast.nn.accelerate import accelerate_, decelerate_
from pecker_fast.optim.adamw import MaskedAdamW
from pecker_fast.runs.checkpoint import RunDirectory
from pecker_fast.runs.ema import slow_average
from pecker_fast.runs.randomness import IterationRandom

__all__ = ["TeacherTrainer", "build_network"]


class TeacherTrainer:
    """Trains a teacher; `run`, then `model`.

    Attributes:
        notes: How iterations are run and what to know of the result, in lines to show.
    """

    def __init__(
        self,
        images: ImageSet,
        config: TeacherConfig,
        device: torch.device,
        *,
        directory: RunDirectory | None = None,
        ranks: Ranks | None = None,
        progress: bool = False,
    ) -> None:
        """Take up the run that the directory holds, or start one.

        Args:
            images: Of all classes; `config.without` leaves one out.
            config: The run.
            device: Where to train.
            directory: Where checkpoints go. None = nothing is written.
            ranks: The processes that share the run. None = this one.
            progress: Show a progress bar.

        Raises:
            PeckerError: Images that the network cannot have, an unknown class, or a directory that
                holds another run.
        """
        if config.without is not None:
            images = images.without(images.class_index(config.without))
        self._images = images
        self._config = config
        self._device = device
        # Under the seed of the run whatever was drawn before, and the same on every process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_network(images.image_shape, images.num_classes, config)
        self._network = network.to(device)
        blocks = f"torch's blocks: no fused ones on {device.type}"
        if device.type == "cuda":
            blocks = "torch's blocks: accelerate is off in the configuration"
            if config.accelerate:
                blocks = str(accelerate_(network))
        self.notes = [blocks, *slow_average(config.ema.decay, config.iterations)]
        self._model = ModelFolder(
            unet=network,
            scheduler=published_scheduler(),
            class_names=images.class_names,
            patch_size=config.network.patch_size,
            null_label=images.num_classes if config.label_dropout > 0 else None,
        )
        options = config.optimizer
        optimizer = MaskedAdamW(
            network.named_parameters(),
            lr=config.lr,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
        ranks = ranks or Ranks()
        self._processes = ranks.size
        self._training = Training(
            network,
            optimizer,
            _denoising(self._model, images, config, device, ranks),
            config,
            config.iterations,
            identity=images.fingerprint(),
            ema_decay=config.ema.decay,
            directory=directory,
            ranks=ranks,
            progress="teacher" if progress else None,
        )

    @property
    def training(self) -> Training:
        """The loop, to step through."""
        return self._training

    def run(self) -> None:
        """Train to the end; see `Training.run`."""
        self._training.run()

    def model(self) -> ModelFolder:
        """The result, on the CPU: averaged weights in eval mode. Call it once, at the end."""
        decelerate_(self._network)
        with torch.no_grad():
            for name, average in self._training.averages().items():
                self._network.get_parameter(name).copy_(average)
        self._network.cpu().eval().requires_grad_(False)
        facts = {
            "images": self._images.source,
            "iterations": self._training.iteration,
            "seconds": round(self._training.stopwatch.seconds, 2),
            "processes": self._processes,
            "config": self._config.model_dump(mode="json"),
            "machine": machine_facts(self._device),
            "versions": versions(),
        }
        figures: dict[str, Any] = {"training": facts}
        if self._config.without is not None:
            # Said as an erased model says what it forgot, so that both are judged alike.
            names = self._images.class_names
            figures["forget"] = names[self._images.class_index(self._config.without)]
        return replace(self._model, figures=figures)


def build_network(
    image_shape: tuple[int, int, int], num_classes: int, config: TeacherConfig
) -> DDPMUNet | UNet2DModel:
    """An untrained noise predictor for images (C, H, W).

    Raises:
        PeckerError: Sizes that do not fit each other.
    """
    section = config.network
    channels, height, width = image_shape
    patch = section.patch_size
    if height != width or height % patch:
        raise PeckerError(
            f"images of {height}x{width} pixels: expected squares whose side is a multiple of "
            f"network.patch_size {patch}"
        )
    if section.image_size not in (None, height):
        raise PeckerError(
            f"images of {height}x{width} pixels: this configuration's network is made for "
            f"{section.image_size}x{section.image_size}; choose that of this data set, or "
            f"--set network.image_size={height} to train it on these all the same"
        )
    side, seen = height // patch, channels * patch**2
    try:
        if section.kind == "unet2d":
            return _unet2d(side, seen, num_classes + (config.label_dropout > 0), section)
        return DDPMUNet(
            sample_size=side,
            in_channels=seen,
            num_classes=num_classes,
            channels=section.channels,
            channel_mult=section.channel_mult,
            attention_levels=section.attention_levels,
            blocks_per_level=section.blocks_per_level,
            norm_num_groups=section.norm_num_groups,
            dropout=section.dropout,
        )
    except ValueError as error:  # what torch and diffusers raise for sizes that do not divide
        raise PeckerError(f"network: {' '.join(str(error).split())}") from error


def _unet2d(side: int, channels: int, labels: int, section: DenoiserSection) -> UNet2DModel:
    levels = range(len(section.channel_mult))
    attends = [level in section.attention_levels for level in levels]
    widths = [section.channels * factor for factor in section.channel_mult]
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=section.blocks_per_level,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        add_attention=any(attends),
        attention_head_dim=math.gcd(32, *widths),
        norm_num_groups=section.norm_num_groups,
        dropout=section.dropout,
        num_class_embeds=labels,
    )


def _denoising(
    model: ModelFolder, images: ImageSet, config: TeacherConfig, device: torch.device, ranks: Ranks
) -> LossOf:
    """The loss of an iteration over this process's rows of the batch, as a part of the batch mean.

    Every process draws the whole batch, so that the numbers do not depend on how many there are.
    """
    if device.type == "cuda":
        images = images.to(device)  # 150 MB for CIFAR-10: batches then cost no transfer
    schedule = NoiseSchedule.from_scheduler(model.scheduler)
    order = ShuffledEpochs(len(images), config.batch_size, config.seed)
    predict = predict_noise if config.precision == "fp32" else with_autocast(predict_noise, device)
    count, steps = config.batch_size, len(schedule.alphas_cumprod)
    rows = ranks.rows(count)
    pixels = model.network_shape[0] * model.network_shape[1] * model.network_shape[2]
    scale = 1.0 / count if config.loss == "sum" else 1.0 / (count * pixels)

    def coins(probability: float, random: IterationRandom) -> Tensor:
        return torch.rand(count, generator=random.generator, device=device) < probability

    def loss_of(iteration: int, random: IterationRandom) -> Tensor:
        chosen = order.indices(iteration)[rows]
        noise = random.normal((count, *model.network_shape), torch.float32)[rows]
        if config.antithetic:
            t = antithetic_timesteps(count, steps, random)[rows]
        else:
            t = torch.randint(steps, (count,), generator=random.generator, device=device)[rows]
        flip = coins(0.5, random)[rows] if config.flip else None
        labels = images.labels[chosen].to(device)
        if model.null_label is not None and config.label_dropout > 0:
            labels = labels.masked_fill(coins(config.label_dropout, random)[rows], model.null_label)
        seen = model.encode(images.batch(chosen, device, flip))
        losses = pseudo_score_loss(model.unet, seen, noise, t, labels, schedule, predict=predict)
        return losses.sum() * scale

    return loss_of
