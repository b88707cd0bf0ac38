"""Train a class-conditional diffusion model on images: the teacher that classes are erased from.

Published training (SA, SalUn, SFD): the noise in x_t is predicted, the squared error summed over an
image's pixels and averaged over the batch, with antithetic time steps, and the class left out for
some images so that guidance has a "no class" to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distill.losses import pseudo_score_loss
from pecker_fast.distill.networks import model_predictor, with_autocast
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.machine import machine_facts, versions
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.methods.image_batches import ShuffledEpochs, timesteps
from pecker_fast.methods.training_config import DenoiserSection, TeacherConfig
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.published import published_scheduler
from pecker_fast.nn.accelerate import unfuse_
from pecker_fast.optim.adamw import MaskedAdamW
from pecker_fast.runs.directory import RunDirectory
from pecker_fast.runs.ema import FullEma, slow_average
from pecker_fast.runs.learner import Learner
from pecker_fast.runs.metrics import ONE_LOSS
from pecker_fast.runs.randomness import IterationRandom
from pecker_fast.runs.run import Run, Stateful, fused_blocks

__all__ = ["TeacherTrainer", "build_network"]


Batch: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of N images on the run's device (N, C, H, W) float32 what the network sees without noise,
(N, C, H, W) e, (N,) int64 time steps and (N,) int64 labels: a class, or "no class"."""


class TeacherTrainer(Run[Batch]):
    """Trains a teacher; `run`, then `model`.

    Attributes:
        network: What is trained.
        notes: How iterations are run and what to know of the result, in lines to show.
    """

    config: TeacherConfig
    lower = "lr"
    terms = (ONE_LOSS,)
    _ema: FullEma | None

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
        # Under the seed of the run whatever was drawn before, and the same on every process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_network(images.image_shape, images.num_classes, config)
        super().__init__(
            config,
            device,
            lambda: {"images": images.fingerprint()},
            directory=directory,
            ranks=ranks,
            title="teacher" if progress else None,
        )
        self.network = network.to(device)
        blocks = fused_blocks(lambda: network, config.accelerate, device)
        self.notes = [blocks, *self.moved, *slow_average(config.ema.decay, config.iterations)]
        self._model = ModelFolder(
            network=network,
            scheduler=FlowMatchEulerDiscreteScheduler() if config.flow else published_scheduler(),
            class_names=images.class_names,
            patch_size=1 if config.network.kind == "dit" else config.network.patch_size,
            null_label=images.num_classes if config.label_dropout > 0 else None,
        )
        if config.ema.decay is not None:
            self._ema = FullEma(network, config.ema.decay)
        options = config.optimizer

        def optimizer(_: nn.Module, mask: SaliencyMask | None, lr: float) -> MaskedAdamW:
            return MaskedAdamW(
                network.named_parameters(),
                lr=lr,
                betas=(options.beta1, options.beta2),
                eps=options.eps,
                weight_decay=options.weight_decay,
                mask=mask,
            )

        self._learner = Learner(
            network, None, config.lr, optimizer, clip_norm=options.clip_norm, ranks=self._ranks
        )
        self.learners.append(self._learner)
        # On the device: 150 MB for CIFAR-10, and batches then cost no transfer.
        self._images = images.to(device) if device.type == "cuda" else images
        self._order = ShuffledEpochs(len(images), config.batch_size, config.seed)
        self._schedule = NoiseSchedule.from_scheduler(self._model.scheduler)
        self._predict = model_predictor(self._model, self._schedule)
        if config.precision == "autocast":
            self._predict = with_autocast(self._predict, device)
        pixels = math.prod(self._model.network_shape)
        self._scale = 1 / (config.batch_size * (1 if config.loss == "sum" else pixels))
        self.begin()

    def draw(self, random: IterationRandom) -> Batch:
        """Images with noise and labels: this process's rows of a batch."""
        config, model, rows = self.config, self._model, self.rows
        count, steps = config.batch_size, self._schedule.usable
        chosen = self._order.indices(random.iteration)[rows]
        noise = random.normal((count, *model.network_shape), torch.float32)[rows]
        t = timesteps(count, steps, random, logit_normal=config.flow)[rows]
        flip = random.coins(count, 0.5)[rows] if config.flip else None
        labels = self._images.labels[chosen].to(self.device)
        if model.null_label is not None:
            dropped = random.coins(count, config.label_dropout)[rows]
            labels = labels.masked_fill(dropped, model.null_label)
        return model.encode(self._images.batch(chosen, self.device, flip)), noise, t, labels

    def advance(self, batch: Batch) -> list[Tensor]:
        """One step down the denoising loss; the part of the batch's mean that these images are."""
        self._learner.learn()
        losses = pseudo_score_loss(
            self.network, *batch, schedule=self._schedule, predict=self._predict
        )
        loss = losses.sum() * self._scale
        self._learner.before_last_backward()
        loss.backward()  # type: ignore[no-untyped-call]
        self._learner.step()
        if self._ema is not None:
            self._ema.update()
        return [loss / self.share]

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """The one network."""
        yield "", self.network

    def held(self) -> Iterator[tuple[str, Iterable[Tensor]]]:
        """The images too."""
        yield from super().held()
        yield "images", [self._images.images]

    def parts(self) -> Mapping[str, Stateful]:
        """Network, optimizer, average."""
        parts: dict[str, Stateful] = {"network": self.network, "optimizer": self._learner}
        return parts if self._ema is None else {**parts, "average": self._ema}

    def model(self) -> ModelFolder:
        """The result, on the CPU: averaged weights in eval mode. Call it once, at the end."""
        unfuse_(self.network)
        if self._ema is not None:
            self._ema.copy_to(self.network)
        self.network.cpu().eval().requires_grad_(False)
        facts = {
            "images": self._images.source,
            "iterations": self.iteration,
            "seconds": round(self.stopwatch.seconds, 2),
            "processes": self._ranks.size,
            "config": self.config.model_dump(mode="json"),
            "machine": machine_facts(self.device),
            "versions": versions(),
        }
        figures: dict[str, Any] = {"training": facts}
        if self.config.without is not None:
            # Said as an erased model says what it forgot, so that both are judged alike.
            names = self._images.class_names
            figures["forget"] = names[self._images.class_index(self.config.without)]
        return replace(self._model, figures=figures)


def build_network(
    image_shape: tuple[int, int, int], num_classes: int, config: TeacherConfig
) -> DDPMUNet | UNet2DModel | DiTTransformer2DModel:
    """An untrained network that denoises images (C, H, W).

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
    side, seen = height // patch, channels * patch**2
    try:
        if section.kind == "dit":
            return _dit(channels, height, num_classes, section)
        if section.kind == "unet2d":
            return _unet2d(side, seen, num_classes + (config.label_dropout > 0), section)
        sizes = section.model_dump(exclude={"kind", "patch_size"})
        return DDPMUNet(sample_size=side, in_channels=seen, num_classes=num_classes, **sizes)
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


def _dit(
    channels: int, side: int, num_classes: int, section: DenoiserSection
) -> DiTTransformer2DModel:
    width = math.gcd(32, section.channels)
    network = DiTTransformer2DModel(
        num_attention_heads=section.channels // width,
        attention_head_dim=width,
        in_channels=channels,
        num_layers=section.blocks_per_level,
        dropout=section.dropout,
        sample_size=side,
        patch_size=section.patch_size,
        num_embeds_ada_norm=num_classes,
    )
    # As published: every block starts as the identity, and the network predicts zeros.
    starts = [block.norm1.linear for block in network.transformer_blocks]
    for layer in (*starts, network.proj_out_1, network.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return network
