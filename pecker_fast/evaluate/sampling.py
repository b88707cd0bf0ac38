"""Images of a model, in one step or in many; the same seed, the same images.

Classes and prompts are drawn alike: a `Model` says what the network is told of what is asked for.
The starting noise of an image depends on the seed and its number alone (`batches`), and so does the
noise of its random steps; other networks of the model's architecture are drawn from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pecker_fast.datasets.pixels import to_uint8
from pecker_fast.distill.networks import (
    NoisePredictor,
    compute_dtype,
    diffusers_predictor,
    guided,
    in_own_dtype,
)
from pecker_fast.distill.schedule import NoiseSchedule, is_flow
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.batches import Batches, Tell, draw_batches, together
from pecker_fast.evaluate.reverse_steps import (
    Reverse,
    ddim,
    ddpm,
    flow_sigmas,
    flow_steps,
    image_streams,
    many_steps,
    one_step,
)
from pecker_fast.models.model import Model
from pecker_fast.nn.winograd import running_winograd

__all__ = ["METHODS", "Labels", "Method", "Sampler", "balanced_labels", "labels_in_turn"]

Method = Literal["one-step", "ddim", "ddpm"]
METHODS: tuple[Method, ...] = ("one-step", "ddim", "ddpm")

Labels: TypeAlias = Tensor | Sequence[str]
"""What N images are asked for: (N,) int64 labels of classes, or prompts."""

MOST_IMAGES = 10_000_000
BATCH_SIZE = 250  # images of classes
_LATENT_PIXELS = 16 * 64 * 64  # of a batch of prompts' images: fills a GPU and still fits one
_MAX_BATCH = 128
_LARGEST_SEED = 2**64 - 1  # that torch's generators take


@dataclass(frozen=True)
class Sampler:
    """How images are drawn."""

    steps: int = 1  # 1 for the one-step generator, more for the others
    seed: int = 0  # of the noise
    # Timestep of the one-step generator (None: the model's own, or where the noise-to-signal ratio
    # is 2.5). The others do not use it.
    t_init: int | None = None
    # Images per forward pass; guidance makes it twice as many. None: 250 of classes, of prompts by
    # the size of latents.
    batch_size: int | None = None
    # "one-step", "ddim", which are Euler's steps along a rectified flow, or "ddpm": ancestral steps
    # with the variance beta_t ("fixed large") and predicted images clamped to [-1, 1]. None:
    # one-step for one step, else ddim.
    method: Method | None = None
    # Of the classifier-free kind, as `Model.scale` counts it: w of class models, for which 0 is
    # none, and the scale 1 + w of pipelines. None: no guidance.
    guidance: float | None = None
    # How random DDIM's steps are; 0: not at all, 1: as DDPM's with its small variance, not clamped,
    # which is how SA, SalUn and SFD sample their many-step models (1,000 steps).
    eta: float = 0.0
    negative: str = ""  # the prompt that guidance leads away from
    seeds: Sequence[int] | None = None  # one for each image, instead of one for all
    guidances: Sequence[float] | None = None  # likewise

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PeckerError(f"sampler: steps must be at least 1, got {self.steps}")
        if self.batch_size is not None and self.batch_size < 1:
            raise PeckerError(f"sampler: batch_size must be at least 1, got {self.batch_size}")
        for seed in {self.seed, *(self.seeds or ())}:
            if not 0 <= seed <= _LARGEST_SEED:
                raise PeckerError(f"sampler: seed must be at least 0 and below 2^64, got {seed}")
        for guidance in {self.guidance or 0.0, *(self.guidances or ())}:
            if not 0 <= guidance < float("inf"):
                raise PeckerError(f"sampler: guidance must be at least 0, got {guidance}")
        if self.method not in (None, *METHODS):
            raise PeckerError(
                f"sampler: unknown method {self.method!r}; known are {', '.join(METHODS)}"
            )
        if (self.kind == "one-step") != (self.steps == 1):
            expected = "takes 1 step" if self.kind == "one-step" else "needs 2 steps or more"
            raise PeckerError(f"sampler: {self.kind} {expected}, got {self.steps}")
        if not 0 <= self.eta <= 1:
            raise PeckerError(f"sampler: eta must lie in [0, 1], got {self.eta}")
        if self.eta and self.kind != "ddim":
            raise PeckerError(f"sampler: eta is for ddim, got {self.eta:g} for {self.kind}")

    @property
    def kind(self) -> Method:
        """The method, chosen by the number of steps where it is not given."""
        return self.method or ("one-step" if self.steps == 1 else "ddim")

    def describe(self) -> str:
        """Describe the sampler as the report prints it."""
        if self.kind == "one-step":
            return "one step"
        words = f"{self.steps} {self.kind.upper()} steps"
        if self.eta:
            words += f", eta {self.eta:g}"
        if self.guidance:
            words += f", guidance {self.guidance:g}"
        return f"{words}, away from {self.negative!r}" if self.negative else words

    def settings(self, model: Model, asked: Labels) -> dict[str, Any]:
        """Return all that decides what is drawn from this model, as plain types, for reports."""
        return {
            "sampler": self.kind,
            "description": self.describe(),
            "steps": self.steps,
            "t_init": self.start(model) if self.kind == "one-step" else None,
            "guidance": "of each row" if self.guidances is not None else self.guidance or 0.0,
            "negative": self.negative,
            "eta": self.eta,
            "seed": "of each row" if self.seeds is not None else self.seed,
            "batch_size": self._most(model, asked),
        }

    def size(self, model: Model, asked: Labels) -> int:
        """Return the number of images per forward pass."""
        return max(min(self._most(model, asked), len(asked)), 1)

    def _most(self, model: Model, asked: Labels) -> int:
        if self.batch_size is not None:
            return self.batch_size
        if isinstance(asked, Tensor):
            return BATCH_SIZE
        _, height, width = model.shape
        return min(max(_LATENT_PIXELS // (height * width), 1), _MAX_BATCH)

    def check(self, model: Model, asked: Labels) -> None:
        """Find out before anything is drawn or written whether it can be.

        Raises:
            PeckerError: as `sample`.
        """
        if not len(asked):
            raise PeckerError("sampler: there is nothing to draw images of")
        if isinstance(asked, Tensor):
            low, high, classes = int(asked.min()), int(asked.max()), len(model.class_names)
            if not 0 <= low <= high < classes:
                raise PeckerError(
                    f"sampler: labels must lie in [0, {classes}), got {low} to {high}"
                )
        self._away(model)
        self._steps(model)

    def sample(
        self,
        model: Model,
        asked: Labels,
        progress: str | None = None,
        *,
        network: nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> Tensor | None:
        """Draw an image of each class or prompt.

        Args:
            model: the network and all that belongs to it. The network is used where, in what
                precision and as it is: call `.eval()` first.
            asked: labels or prompts, the same on all processes.
            progress: title of a progress bar on stderr, of the first process's share; None for no
                bar.
            network: another one of the model's architecture. None: its own.
            ranks: the processes that share the work, batch by batch. None: this one does it all.

        Returns:
            (N, C, H, W) float32 images in [-1, 1], on the CPU. All of them on the first process,
            bit for bit those that one process draws there; None on the others.

        Raises:
            PeckerError: nothing is asked for, a class that the model does not have, more steps
                than its schedule has, a time step outside of it, or guidance that it does not know.
        """
        return self._together(model, asked, progress, network, ranks)

    def latents(
        self,
        model: Model,
        asked: Labels,
        *,
        network: nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> Tensor | None:
        """Draw what the network denoises: as `sample`, but neither decoded nor clamped."""
        return self._together(model, asked, None, network, ranks, latent=True)

    def pixels(
        self, model: Model, asked: Labels, progress: str | None = None, *, ranks: Ranks
    ) -> Tensor | None:
        """As `sample`, but (N, C, H, W) uint8: the pixels of PNGs, in a quarter of the memory.

        Rounded batch by batch, so that 50,000 images of 64x64 take 0.6 GB and not 2.5.
        """

        def batches(only: range, title: str | None) -> Batches:
            drawn = self.batches(model, asked, only, title)
            return ((part, to_uint8(images)) for part, images in drawn)

        like = torch.empty(model.image_shape, dtype=torch.uint8)
        return together(batches, len(asked), self.size(model, asked), like, ranks, progress)

    def batches(
        self,
        model: Model,
        asked: Labels,
        only: Collection[int] | None = None,
        progress: str | None = None,
        *,
        network: nn.Module | None = None,
        latent: bool = False,
    ) -> Batches:
        """Draw batch by batch, for whoever writes or judges images as they come.

        Batch k holds the images from k times the batch size on; `only` has the numbers of those to
        draw, None: all. The rest is as of `sample`, or, with `latent`, of `latents`.

        Yields:
            Which images, and (n, C, H, W) float32 on the CPU.
        """
        self.check(model, asked)
        denoiser: nn.Module = model.network if network is None else network
        device, dtype = next(denoiser.parameters()).device, compute_dtype(denoiser)
        plain, reverse = self._predictor(model), self._steps(model)
        away, scale = self._away(model), self._scale(model)

        @torch.no_grad()
        def draw(part: slice, noise: Tensor, tell: Tell) -> Tensor:
            noise = noise.to(device, dtype)
            predict = plain
            if away is not None:
                of_part: Any = scale
                if isinstance(scale, list):
                    of_part = torch.tensor(scale[part]).to(noise)[:, None, None, None]
                predict = guided(plain, of_part, away)
            # Batch by batch: thousands of embeddings of 77 x 768 would take gigabytes.
            told, streams = _condition(model, asked[part], device), image_streams(self.seed, part)
            with running_winograd(denoiser):
                drawn = reverse(denoiser, predict)(noise, told, streams, tell)
            if latent:
                return drawn.float()
            vae = None if model.vae is None else model.vae.to(device)
            with running_winograd(denoiser if vae is None else vae):
                return model.images(drawn).float()

        size = self.size(model, asked)
        seeds = self.seed if self.seeds is None else self.seeds
        return draw_batches(draw, len(asked), size, model.shape, seeds, only, progress)

    def _together(
        self,
        model: Model,
        asked: Labels,
        progress: str | None,
        network: nn.Module | None,
        ranks: Ranks | None,
        latent: bool = False,
    ) -> Tensor | None:
        batches = partial(self.batches, model, asked, network=network, latent=latent)
        size, like = (
            self.size(model, asked),
            torch.empty(model.shape if latent else model.image_shape),
        )
        return together(batches, len(asked), size, like, ranks or Ranks(), progress)

    def _predictor(self, model: Model) -> NoisePredictor:
        call = model.architecture.call
        if self.kind != "one-step":
            return in_own_dtype(call)
        return diffusers_predictor(self._schedule(model), call, model.prediction_type)

    def _steps(self, model: Model) -> Callable[[nn.Module, NoisePredictor], Reverse]:
        config = model.schedule
        if self.kind == "one-step":
            schedule = self._schedule(model)
            return lambda network, predict: one_step(network, predict, schedule)
        if is_flow(config):
            if self.kind == "ddpm" or self.eta:
                raise PeckerError(
                    "sampler: the model is a rectified flow, whose steps are not random; use ddim "
                    "with eta 0, Euler's steps along it"
                )
            sigmas = flow_sigmas(config, self.steps, model.tokens)
            return lambda network, predict: flow_steps(network, predict, sigmas)
        if self.kind == "ddpm":
            ancestral = ddpm(config, self.steps)
            return lambda network, predict: many_steps(network, predict, ancestral)
        # Schedulers other than DDIM do not say that samples are not clipped, and DDIM clips
        # unless it is told: latents reach far outside [-1, 1].
        scheduler = ddim({"clip_sample": False, **config}, self.steps)
        return lambda network, predict: many_steps(network, predict, scheduler, eta=self.eta)

    def _away(self, model: Model) -> Tensor | None:
        """What guidance leads away from, (1, ...); None without guidance."""
        return None if self._scale(model) == 1 else model.condition([self.negative or None])

    def _scale(self, model: Model) -> float | list[float]:
        """The scale of guidance, 1 for none; or one for each image."""
        if self.guidances is not None:
            return [model.scale(guidance) for guidance in self.guidances]
        return 1.0 if self.guidance is None else model.scale(self.guidance)

    def start(self, model: Model) -> int:
        """Return the time step that one step starts from."""
        return self._schedule(model).t_init

    def _schedule(self, model: Model) -> NoiseSchedule:
        t_init = model.card.get("t_init") if self.t_init is None else self.t_init
        # The time constants of training play no part here; any valid ones will do.
        return NoiseSchedule.from_scheduler_config(model.schedule, t_init=t_init, t_min=0, t_max=1)


def _condition(model: Model, asked: Labels, device: torch.device) -> Tensor:
    """What the network is told, (n, ...) on the device; repeated prompts are encoded once."""
    if isinstance(asked, Tensor):
        return asked.to(device)
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(asked))}
    told = model.condition(list(rows), device)
    return told[[rows[prompt] for prompt in asked]].to(device)


def balanced_labels(num_classes: int, per_class: int) -> Tensor:
    """Labels 0, 1, ..., K-1, 0, 1, ...: any prefix of K * n labels has n of each class."""
    return labels_in_turn(range(num_classes), num_classes * per_class)


def labels_in_turn(classes: Sequence[int], count: int) -> Tensor:
    """Return `count` labels, (N,) int64: these classes in turn.

    Raises:
        PeckerError: more of them than can be drawn and kept.
    """
    if count > MOST_IMAGES:
        raise PeckerError(f"sampler: {count:,} images; at most {MOST_IMAGES:,} can be asked for")
    return torch.tensor(classes).repeat(-(-count // len(classes)))[:count]
