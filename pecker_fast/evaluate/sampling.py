"""Images from a model folder, in one step or in many; the same seed, the same images.

The starting noise of all images comes from one stream (`batches`), and the noise of an image's
random steps from its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.distill.networks import guided, in_own_dtype, model_predictor
from pecker_fast.distill.schedule import NoiseSchedule, is_flow
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.batches import Batches, Tell, draw_batches, together
from pecker_fast.evaluate.reverse_steps import (
    Reverse,
    check_settings,
    ddim,
    ddpm,
    flow_sigmas,
    flow_steps,
    image_streams,
    many_steps,
    one_step,
)
from pecker_fast.nn.winograd import running_winograd

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder

__all__ = ["METHODS", "Method", "Sampler", "balanced_labels", "labels_in_turn"]

Method = Literal["one-step", "ddim", "ddpm"]
METHODS: tuple[Method, ...] = ("one-step", "ddim", "ddpm")

MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class Sampler:
    """How images are drawn."""

    steps: int = 1  # 1 for the one-step generator, more for the others
    seed: int = 0  # of the noise
    # Timestep of the one-step generator (None: the model folder's own, or where the noise-to-signal
    # ratio is 2.5). The others do not use it.
    t_init: int | None = None
    batch_size: int = 250  # images per forward pass; guidance makes it twice as many
    # "one-step", "ddim", which are Euler's steps along a rectified flow, or "ddpm": ancestral steps
    # with the variance beta_t ("fixed large") and predicted images clamped to [-1, 1]. None:
    # one-step for one step, else ddim.
    method: Method | None = None
    # W of classifier-free guidance, (1 + w) eps_c - w eps_null. 0: none; SA and SalUn sample with
    # 2.
    guidance: float = 0.0
    # How random DDIM's steps are; 0: not at all, 1: as DDPM's with its small variance, not clamped,
    # which is how SA, SalUn and SFD sample their many-step models (1,000 steps).
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PeckerError(f"sampler: steps must be at least 1, got {self.steps}")
        if self.batch_size < 1:
            raise PeckerError(f"sampler: batch_size must be at least 1, got {self.batch_size}")
        check_settings(self.seed, self.guidance)
        if self.method not in (None, *METHODS):
            raise PeckerError(
                f"sampler: unknown method {self.method!r}; known are {', '.join(METHODS)}"
            )
        if (self.kind == "one-step") != (self.steps == 1):
            expected = "takes 1 step" if self.kind == "one-step" else "needs 2 steps or more"
            raise PeckerError(f"sampler: {self.kind} {expected}, got {self.steps}")
        if self.guidance and self.kind == "one-step":
            raise PeckerError(
                f"sampler: guidance is for many steps, got {self.guidance:g} for a one-step "
                "generator; leave it at 0"
            )
        if not 0 <= self.eta <= 1:
            raise PeckerError(f"sampler: eta must lie in [0, 1], got {self.eta}")
        if self.eta and self.kind != "ddim":
            raise PeckerError(f"sampler: eta is for ddim, got {self.eta:g} for {self.kind}")

    @property
    def kind(self) -> Method:
        """The method, chosen by the number of steps where it is not given."""
        return self.method or ("one-step" if self.steps == 1 else "ddim")

    def describe(self) -> str:
        """The sampler in words, as the report prints it."""
        if self.kind == "one-step":
            return "one step"
        words = f"{self.steps} {self.kind.upper()} steps"
        if self.eta:
            words += f", eta {self.eta:g}"
        return f"{words}, guidance {self.guidance:g}" if self.guidance else words

    def settings(self, model: ModelFolder) -> dict[str, Any]:
        """All that decides what is drawn from this model, as plain types, for reports."""
        return {
            "sampler": self.kind,
            "description": self.describe(),
            "steps": self.steps,
            "t_init": self._t_init(model) if self.kind == "one-step" else None,
            "guidance": self.guidance,
            "eta": self.eta,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def check(self, model: ModelFolder, labels: Tensor) -> None:
        """Find out before anything is drawn or written whether it can be.

        Raises:
            PeckerError: as `sample`.
        """
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < model.num_classes:
            raise PeckerError(
                f"sampler: labels must lie in [0, {model.num_classes}), "
                f"got {int(labels.min())} to {int(labels.max())}"
            )
        self._reverse(model)

    def sample(
        self,
        model: ModelFolder,
        labels: Tensor,
        progress: str | None = None,
        *,
        ranks: Ranks | None = None,
    ) -> Tensor | None:
        """Draw one image per label.

        Args:
            model: the network and its schedule. The network is used as it is: call `.eval()` first.
            labels: (N,) int64 class indices, the same on all processes.
            progress: title of a progress bar on stderr, of the first process's share; None for no
                bar.
            ranks: the processes that share the work, batch by batch. None: this one does it all.

        Returns:
            (N, C, H, W) float32 images in [-1, 1], on the CPU. All of them on the first process,
            bit for bit those that one process draws there; None on the others.

        Raises:
            PeckerError: a label that the model has no class for, more steps than it has, or
                guidance for a model that has no entry for "no class".
        """
        batches = partial(self.batches, model, labels)
        size, like = self._batch_size(labels), torch.empty(model.image_shape)
        return together(batches, len(labels), size, like, ranks or Ranks(), progress)

    def pixels(
        self, model: ModelFolder, labels: Tensor, progress: str | None = None, *, ranks: Ranks
    ) -> Tensor | None:
        """As `sample`, but (N, C, H, W) uint8: the pixels of PNGs, in a quarter of the memory.

        Rounded batch by batch, so that 50,000 images of 64x64 take 0.6 GB and not 2.5.
        """

        def batches(only: range, title: str | None) -> Batches:
            drawn = self.batches(model, labels, only, title)
            return ((part, to_uint8(images)) for part, images in drawn)

        size, like = self._batch_size(labels), torch.empty(model.image_shape, dtype=torch.uint8)
        return together(batches, len(labels), size, like, ranks, progress)

    def batches(
        self,
        model: ModelFolder,
        labels: Tensor,
        only: Collection[int] | None = None,
        progress: str | None = None,
    ) -> Batches:
        """Draw batch by batch, for whoever writes images as they come.

        Batch k holds the images from k * batch_size on; `only` has the numbers of those to draw,
        None: all.

        Yields:
            Which images, and (n, C, H, W) float32 in [-1, 1] on the CPU.

        Raises:
            PeckerError: as `sample`.
        """
        self.check(model, labels)
        reverse = self._reverse(model)
        device = next(model.network.parameters()).device

        @torch.no_grad()
        def draw(part: slice, noise: Tensor, tell: Tell) -> Tensor:
            streams = image_streams(self.seed, part)
            with running_winograd(model.network):
                drawn = reverse(noise.to(device), labels[part].to(device), streams, tell)
            return model.images(drawn).float()

        shape = model.network_shape
        return draw_batches(draw, len(labels), self.batch_size, shape, self.seed, only, progress)

    def _batch_size(self, labels: Tensor) -> int:
        return min(self.batch_size, max(len(labels), 1))

    def _reverse(self, model: ModelFolder) -> Reverse:
        network, config, null = model.network, model.scheduler.config, model.null_label
        if self.kind == "one-step":
            schedule = self._schedule(model)
            return one_step(network, model_predictor(model, schedule), schedule)
        predict = in_own_dtype(model.architecture.call)
        if self.guidance:
            if null is None:
                raise PeckerError(
                    "sampler: guidance needs a model that was trained with a label for 'no class', "
                    "and this one has none (null_label in its pecker_fast.json); use guidance 0"
                )
            predict = guided(predict, 1 + self.guidance, torch.tensor([null]))
        if is_flow(config):
            if self.kind == "ddpm" or self.eta:
                raise PeckerError(
                    "sampler: the model is a rectified flow, whose steps are not random; use ddim "
                    "with eta 0, Euler's steps along it"
                )
            tokens = model.architecture.tokens(model.network_shape, network.config)
            return flow_steps(network, predict, flow_sigmas(config, self.steps, tokens))
        if self.kind == "ddim":
            return many_steps(network, predict, ddim(config, self.steps), eta=self.eta)
        return many_steps(network, predict, ddpm(config, self.steps))

    def _t_init(self, model: ModelFolder) -> int:
        return self._schedule(model).t_init

    def _schedule(self, model: ModelFolder) -> NoiseSchedule:
        t_init = model.figures.get("t_init") if self.t_init is None else self.t_init
        # The time constants of training play no part here; any valid ones will do.
        return NoiseSchedule.from_scheduler(model.scheduler, t_init=t_init, t_min=0, t_max=1)


def balanced_labels(num_classes: int, per_class: int) -> Tensor:
    """Labels 0, 1, ..., K-1, 0, 1, ...: any prefix of K * n labels has n of each class."""
    return labels_in_turn(range(num_classes), num_classes * per_class)


def labels_in_turn(classes: Sequence[int], count: int) -> Tensor:
    """`count` labels, (N,) int64: these classes in turn.

    Raises:
        PeckerError: more of them than can be drawn and kept.
    """
    if count > MOST_IMAGES:
        raise PeckerError(f"sampler: {count:,} images; at most {MOST_IMAGES:,} can be asked for")
    return torch.tensor(classes).repeat(-(-count // len(classes)))[:count]
