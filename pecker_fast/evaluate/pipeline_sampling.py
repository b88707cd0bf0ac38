"""Images from a text-to-image pipeline, in one step or in many; the same seed, the same noise.

A sampler belongs to a pipeline folder, whose text encoder, schedule and autoencoder it uses, and
draws from any network of that architecture: the original one, the erased one, one in training, from
the same noise (`batches`), so that their pictures compare.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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
    check_settings,
    ddim,
    flow_sigmas,
    flow_steps,
    image_streams,
    many_steps,
    one_step,
)
from pecker_fast.models.latents import Autoencoder, pixels
from pecker_fast.nn.winograd import running_winograd

if TYPE_CHECKING:
    from pecker_fast.models.pipeline import PipelineFolder

__all__ = ["PipelineSampler"]

# What fills a GPU and still fits one: 16 latents of 64x64 with guidance, 4 of them as images.
_LATENT_PIXELS = {"network": 16 * 64 * 64, "decoder": 4 * 64 * 64}
_MAX_BATCH = 128


class PipelineSampler:
    """Draws latents from networks of one pipeline, and makes images of them.

    Networks are used as they are, in their own precision: call `.eval()` first.
    """

    def __init__(
        self,
        pipeline: PipelineFolder,
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
    ) -> None:
        """Remember the pipeline; the autoencoder is loaded when images are first asked for.

        Args:
            pipeline: text encoder, schedule and autoencoder.
            device: where the networks are that will be given.
            batch_size: images per forward pass (guidance doubles it). None: by latent size, 16
                for Stable Diffusion 1.5.

        Raises:
            PeckerError: a batch size below 1, or a schedule that is not known.
        """
        if batch_size is not None and batch_size < 1:
            raise PeckerError(f"sampler: batch_size must be at least 1, got {batch_size}")
        self.pipeline = pipeline
        self.device = torch.device(device)
        self.batch_size = batch_size or self._batch_size_for("network")
        self._decoder: Autoencoder | None = None
        self._schedule_at(None)  # an unknown schedule comes out now, not in a preview

    @property
    def t_init(self) -> int:
        """Where one step starts: what the pipeline's description says, or where sigma is 2.5."""
        return self._schedule_at(self.pipeline.description.get("t_init")).t_init

    def latents(
        self,
        network: nn.Module,
        prompts: Sequence[str],
        seed: int,
        steps: int = 1,
        *,
        t_init: int | None = None,
        guidance: float = 1.0,
        negative: str = "",
        progress: str | None = None,
        ranks: Ranks | None = None,
    ) -> Tensor:
        """One step is G(n, c) of the distillation; more are DDIM, or Euler's steps of a flow.

        Args:
            network: on the sampler's device.
            prompts: N texts, one an image.
            seed: of the noise.
            steps: calls of the network.
            t_init: the time step that one step starts from. None: the pipeline's, see `t_init`.
            guidance: scale of the classifier-free kind; 1 is none, and halves the work.
            negative: what guidance leads away from.
            progress: title of a progress bar on stderr, of the first process's share; None for no
                bar.
            ranks: the processes that share the work, batch by batch. None: this one does it all.

        Returns:
            (N, C, H, W) latents, float32 on the CPU, not clamped: all of them on the first process,
            none (N = 0) on the others.

        Raises:
            PeckerError: no prompts, a seed or scale that is none, a time step outside the schedule,
                or more steps than it has.
        """
        draw = partial(
            self.batches, network, prompts, seed, steps,
            t_init=t_init, guidance=guidance, negative=negative,
        )  # fmt: skip
        size, like = min(self.batch_size, len(prompts)), torch.empty(self.pipeline.network_shape)
        latents = together(
            lambda only, title: draw(only=only, progress=title), len(prompts), max(size, 1), like,
            ranks or Ranks(), progress,
        )  # fmt: skip
        return like.new_empty(0, *like.shape) if latents is None else latents

    def batches(
        self,
        network: nn.Module,
        prompts: Sequence[str],
        seed: int | Sequence[int],
        steps: int = 1,
        *,
        t_init: int | None = None,
        guidance: float | Sequence[float] = 1.0,
        negative: str = "",
        only: Collection[int] | None = None,
        progress: str | None = None,
    ) -> Batches:
        """The latents of `latents`, batch by batch; batch k starts at image k * `batch_size`.

        `seed` may be N seeds and `guidance` N scales, one an image. `only` has the numbers of the
        batches to draw; None: all.

        Raises:
            PeckerError: see `latents`.
        """
        for one in {seed} if isinstance(seed, int) else set(seed):
            check_settings(one, 1.0)
        for scale in {guidance} if isinstance(guidance, (int, float)) else set(guidance):
            check_settings(0, scale)
        if not prompts:
            raise PeckerError("sampler: there are no prompts to draw images for")
        schedule = self._schedule_at(self.t_init if t_init is None else t_init)
        call, kind = self.pipeline.architecture.call, self.pipeline.prediction_type
        plain = diffusers_predictor(schedule, call, kind) if steps == 1 else in_own_dtype(call)
        away = self.pipeline.texts.encode([negative], self.device)
        steps_of = self._many_steps(steps) if steps != 1 else None
        dtype = compute_dtype(network)

        @torch.no_grad()
        def draw(part: slice, noise: Tensor, tell: Tell) -> Tensor:
            scale: float | Tensor = (
                guidance
                if isinstance(guidance, (int, float))
                else torch.tensor(guidance[part], dtype=dtype, device=self.device)[
                    :, None, None, None
                ]
            )
            predict = guided(plain, scale, away)
            reverse = (
                one_step(network, predict, schedule)
                if steps_of is None
                else steps_of(network, predict)
            )
            # Batch by batch: thousands of embeddings of 77 x 768 would take gigabytes.
            condition = self._encode(prompts[part])
            streams = image_streams(seed if isinstance(seed, int) else 0, part)  # DDIM draws none
            with running_winograd(network):
                return reverse(noise.to(self.device, dtype), condition, streams, tell).float()

        size, shape = min(self.batch_size, len(prompts)), self.pipeline.network_shape
        return draw_batches(draw, len(prompts), size, shape, seed, only, progress)

    def images(self, latents: Tensor, *, ranks: Ranks | None = None) -> Tensor:
        """Decode latents (N, C, H, W), the first process's.

        Returns:
            (N, 3, H', W') images in [0, 1], float32 on the CPU: all of them on the first process,
            none (N = 0) on the others.
        """
        ranks = ranks or Ranks()
        latents = ranks.broadcast(latents)
        if self._decoder is None:
            self._decoder = self.pipeline.vae.to(self.device)
        decoder, size = self._decoder, self._batch_size_for("decoder")
        like = torch.empty(3, *(pixels(decoder) * extent for extent in latents.shape[2:]))

        def decoded(only: range, _: str | None) -> Batches:
            for number in only:
                part = slice(number * size, (number + 1) * size)
                with running_winograd(decoder):
                    images = self.pipeline.images(latents[part].to(self.device)) / 2 + 0.5
                yield part, images

        images = together(decoded, len(latents), size, like, ranks, None)
        return like.new_empty(0, *like.shape) if images is None else images

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        """(N, L, D) on the device; repeated prompts are encoded once."""
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        table = self.pipeline.texts.encode(list(rows), self.device)
        return table[[rows[prompt] for prompt in prompts]].to(self.device)

    def _many_steps(self, steps: int) -> Callable[[nn.Module, NoisePredictor], Reverse]:
        config = self.pipeline.scheduler_config
        if is_flow(config):
            shape, network = self.pipeline.network_shape, self.pipeline.network.config
            tokens = self.pipeline.architecture.tokens(shape, network)
            sigmas = flow_sigmas(config, steps, tokens)
            return lambda network, predict: flow_steps(network, predict, sigmas)
        # Schedulers other than DDIM do not say that samples are not clipped, and DDIM clips
        # unless it is told: latents reach far outside [-1, 1].
        scheduler = ddim({"clip_sample": False, **config}, steps)
        return lambda network, predict: many_steps(network, predict, scheduler)

    def _schedule_at(self, t_init: int | None) -> NoiseSchedule:
        # The time constants of training play no part here; any valid ones will do.
        config = self.pipeline.scheduler_config
        return NoiseSchedule.from_scheduler_config(config, t_init=t_init, t_min=0, t_max=1)

    def _batch_size_for(self, part: str) -> int:
        _, height, width = self.pipeline.network_shape
        return min(max(_LATENT_PIXELS[part] // (height * width), 1), _MAX_BATCH)
