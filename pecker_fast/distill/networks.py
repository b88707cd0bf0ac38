"""How the distillation calls a network. The only file here that knows what a network looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError
from pecker_fast.nn.recomputing import computed_again

if TYPE_CHECKING:
    from pecker_fast.models import ModelFolder
    from pecker_fast.models.pipeline import PipelineFolder

__all__ = [
    "Guided",
    "NoisePredictor",
    "Predictors",
    "compute_dtype",
    "diffusers_predictor",
    "guided",
    "guided_by_sample",
    "in_own_dtype",
    "model_predictor",
    "predict_noise",
    "with_autocast",
]


class NoisePredictor(Protocol):
    """The adapter between a network and the losses: write one for a network of your own.

    `adapter(network, x_t, t, condition)` returns the predicted noise, shaped like `x_t`
    (N, C, H, W); `t` is (N,) int64 and `condition` (N, ...): class labels, or text embeddings.
    """

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise in `x_t`."""
        ...


def predict_noise(network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """The default adapter: `network(x_t, t, condition)`.

    This is how a diffusers `UNet2DModel` takes its class labels; its `.sample` is unwrapped. Any
    module that takes the same three arguments and returns a tensor works as well. The image is
    cast to the network's dtype on the way in and the answer back on the way out, so that a
    low-precision network still meets losses in the images' precision.

    Args:
        network: The module to call.
        x_t: (N, C, H, W) noisy images.
        t: (N,) int64 time steps.
        condition: (N,) int64 class labels.

    Returns:
        (N, C, H, W) predicted noise in the dtype of `x_t`.

    Raises:
        PeckerError: The network answers with something that is not shaped like an image.
    """
    first = next(network.parameters(), x_t)
    output = network(x_t.to(first.dtype), t, condition)
    noise = output if isinstance(output, Tensor) else getattr(output, "sample", None)
    if not isinstance(noise, Tensor) or noise.shape != x_t.shape:
        found = tuple(noise.shape) if isinstance(noise, Tensor) else type(output).__name__
        raise PeckerError(
            f"{type(network).__name__} must predict noise shaped like its input "
            f"{tuple(x_t.shape)}, got {found}; pass your own adapter as `predict`"
        )
    return noise.to(x_t.dtype)


def compute_dtype(network: nn.Module) -> torch.dtype:
    """The dtype of images, noise and losses: float32, or float64 for a float64 network."""
    first = next(network.parameters(), None)
    return torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32


def with_autocast(predict: NoisePredictor, device: torch.device) -> NoisePredictor:
    """`predict` under bf16 autocast, with everything around the network left in fp32."""

    def predict_bf16(network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        # One context per call: within one context autocast would hand the weights that it cast
        # under no_grad to a later pass that needs their gradient.
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return predict(network, x_t, t, condition).to(x_t.dtype)

    return predict_bf16


@dataclass(frozen=True)
class Predictors:
    """How networks are called in each place of the method, which guidance may tell apart."""

    generator: NoisePredictor  # theta, for its samples
    training: NoisePredictor  # psi while it learns (kappa1)
    difference: NoisePredictor  # psi in the difference p - s of the generator loss (kappa2)
    # psi in the residual s - x_g (kappa3). None: as in the difference, which saves a pass.
    residual: NoisePredictor | None
    teacher: NoisePredictor  # phi (kappa4)

    @classmethod
    def all(cls, predict: NoisePredictor) -> Predictors:
        """The same everywhere: no guidance."""
        return cls(predict, predict, predict, None, predict)

    def apart(self) -> Predictors:
        """The halves of guidance one after the other."""
        return self._map(lambda p: replace(p, apart=True) if isinstance(p, Guided) else p)

    def map(self, change: Callable[[NoisePredictor], NoisePredictor]) -> Predictors:
        """What calls the networks changed alike, within guidance."""
        return self._map(
            lambda p: replace(p, predict=change(p.predict)) if isinstance(p, Guided) else change(p)
        )

    def _map(self, change: Callable[[NoisePredictor], NoisePredictor]) -> Predictors:
        places: dict[str, Any] = vars(self)
        return Predictors(**{k: v and change(v) for k, v in places.items()})


Call = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""A network's own prediction: (network, x_t, time, condition), in the network's dtype."""


def in_own_dtype(call: Call, schedule: NoiseSchedule | None = None) -> NoisePredictor:
    """What a network of diffusers itself predicts, for images of any dtype.

    Args:
        call: The network's own prediction, of and in its own dtype, told times of its own.
        schedule: The teacher's, whose time steps it is asked for. None: it is asked for such times.
    """

    def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        dtype = next(network.parameters(), x_t).dtype
        time = t if schedule is None else schedule.times(t, x_t)
        told = condition.to(dtype) if condition.is_floating_point() else condition
        return call(network, x_t.to(dtype), time, told).to(x_t.dtype)

    return predict


def diffusers_predictor(
    schedule: NoiseSchedule, call: Call, prediction_type: str = "epsilon"
) -> NoisePredictor:
    """The adapter for a network of diffusers: whatever it predicts is read as noise.

    Of the velocity of diffusion, v = a e - b x_0, that is e = a v + b x_t. Its published loss,
    ||v - v'||^2 weighted with snr / (snr + 1) = a^2, is then the same as ||e - e'||^2. Of the
    velocity of a rectified flow, v = e - x_0, it is e = x_t + a v.

    Args:
        schedule: The teacher's.
        call: The network's own prediction, of and in its own dtype, told times of its own.
        prediction_type: "epsilon", "v_prediction" or "flow_prediction", as diffusers' schedulers
            call them.

    Raises:
        PeckerError: Another prediction type.
    """
    if prediction_type not in ("epsilon", "v_prediction", "flow_prediction"):
        raise PeckerError(
            f"the teacher's scheduler has prediction_type {prediction_type!r}; the distillation "
            "knows 'epsilon', 'v_prediction' and flows"
        )
    own = in_own_dtype(call, schedule)
    if prediction_type == "epsilon":
        return own

    def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        output = own(network, x_t, t, condition)
        a, b = schedule.coefficients(t, x_t)
        return x_t + a * output if prediction_type == "flow_prediction" else a * output + b * x_t

    return predict


def model_predictor(model: ModelFolder | PipelineFolder, schedule: NoiseSchedule) -> NoisePredictor:
    """`diffusers_predictor` of the network in a folder."""
    return diffusers_predictor(schedule, model.architecture.call, model.prediction_type)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance: e_neg + scale * (e - e_neg)."""

    predict: NoisePredictor
    scale: float | Tensor  # kappa; or (N, 1, 1, 1), one a sample
    # condition -> what the network is told to lead away from, and what else; (N, ...) each.
    told: Callable[[Tensor], tuple[Tensor, Tensor]]
    # One after the other, and in the backward pass each again, so that the activations of one are
    # there at a time. Else both in one pass of 2N samples.
    apart: bool = False

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise in `x_t`."""
        told = self.told(condition)
        if self.apart:
            without, with_prompt = (
                computed_again(self.predict, network, x_t, t, each, draws=network) for each in told
            )
        else:
            both = self.predict(network, torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat(told))
            without, with_prompt = both.chunk(2)
        found: Tensor = without + self.scale * (with_prompt - without)
        return found


def guided(predict: NoisePredictor, scale: float | Tensor, negative: Tensor) -> NoisePredictor:
    """Classifier-free guidance away from one condition, both halves in one pass of 2N samples.

    Args:
        predict: Calls the network.
        scale: kappa; 1 is no guidance, and costs no second half. Or (N, 1, 1, 1), one a sample.
        negative: (1, ...) the condition to lead away from, or (N, ...): the embedding of the empty
            or a negative prompt, or the label of no class.
    """
    if not isinstance(scale, Tensor) and scale == 1:
        return predict
    return Guided(predict, scale, lambda c: (negative.to(c).expand_as(c), c))


def guided_by_sample(predict: NoisePredictor, scale: float, negative: int = 1) -> NoisePredictor:
    """`guided` away from another prompt for every sample, which comes with its condition.

    Args:
        predict: Calls the network, with conditions of (N, L, D).
        scale: kappa; 1 is no guidance.
        negative: Which of a sample's negative prompts. Conditions of what comes out are
            (N, K, L, D): the prompt first, then what guidance leads away from.
    """
    if scale == 1:
        return lambda network, x_t, t, condition: predict(network, x_t, t, condition[:, 0])
    return Guided(predict, scale, lambda c: (c[:, negative], c[:, 0]))
