"""How diffusers draws from a one-step generator: a scheduler, and the line to type.

A generator of a diffusion model takes b_t * noise at t = t_init to (b_t noise - b_t eps) / a_t.
That is one step of diffusers' `EulerDiscreteScheduler` from sigma = b_t / a_t to 0: it scales noise
by the sigma it starts from, and the network's input by 1 / sqrt(sigma^2 + 1) = a_t. So the
scheduler of a generator's folder is Euler's, on the schedule up to t_init: one step starts there.
Of a rectified flow it is the flow's own, which scales nothing: whoever calls scales the noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import (
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from pecker_fast.files import read_json, write_text
from pecker_fast.models.card import add_to_card
from pecker_fast.models.ddpm import DDPMUNet

if TYPE_CHECKING:
    from pecker_fast.models.folder import ModelFolder

__all__ = ["one_step_scheduler", "write_class_pipeline", "write_prompt_pipeline"]

INDEX = "model_index.json"


def one_step_scheduler(config: Mapping[str, Any], t_init: int) -> EulerDiscreteScheduler:
    """Euler's scheduler, whose one step, from `t_init`, is that of the generator."""
    whole = DDPMScheduler.from_config(config)
    betas = whole.config.trained_betas
    if whole.config.rescale_betas_zero_snr:  # no schedule that has a name
        betas = whole.betas.tolist()
    return EulerDiscreteScheduler(
        num_train_timesteps=t_init + 1,
        beta_start=whole.config.beta_start,
        # Linear schedules stay linear when they are cut off.
        beta_end=float(whole.betas[t_init]),
        beta_schedule=whole.config.beta_schedule,
        trained_betas=None if betas is None else list(betas[: t_init + 1]),
        prediction_type=whole.config.prediction_type,
        timestep_spacing="trailing",
        steps_offset=1,  # plays no part then, but `StableDiffusionPipeline` complains of 0
    )


def write_class_pipeline(root: Path, model: ModelFolder, t_init: int) -> None:
    """Scheduler, model_index.json and README.md of a class model's folder.

    diffusers itself can draw from it, where the network is its U-Net and sees pixels as they are:
    its pipeline of consistency models takes one step, by whatever scheduler the folder has.
    """
    network, flow = model.architecture, model.prediction_type == "flow_prediction"
    config = model.scheduler.config
    scheduler: Any = plain_flow(config) if flow else one_step_scheduler(config, t_init)
    scheduler.save_pretrained(root / "scheduler")
    plain = network.name == "UNet2DModel" and model.patch_size == 1
    plain = plain and not flow and model.vae is None
    library = DDPMUNet.__module__ if isinstance(model.network, DDPMUNet) else "diffusers"
    index: dict[str, Any] = {
        "_class_name": "ConsistencyModelPipeline" if plain else "OneStepPipeline",
        network.denoiser: [library, type(model.network).__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "patch_size": model.patch_size,
    }
    if model.vae is not None:
        index["vae"] = ["diffusers", type(model.vae).__name__]
    if flow:
        # A fresh one's are those of all time steps, the last first.
        every = FlowMatchEulerDiscreteScheduler.from_config(config).sigmas
        index["sigma"] = float(every[-1 - t_init])
    write_text(root / INDEX, json.dumps(index, indent=2) + "\n")
    names = "\n".join(f"- {number}: {name}" for number, name in enumerate(model.class_names))
    lines = [_WITH_PACKAGE, *([_WITHOUT] if plain else [])]
    add_to_card(root, "\n\n".join(["# A one-step generator", *lines, names]))


def plain_flow(config: Mapping[str, Any]) -> FlowMatchEulerDiscreteScheduler:
    """A flow's scheduler that takes the sigmas that it is given as they are."""
    return FlowMatchEulerDiscreteScheduler(config["num_train_timesteps"])


def write_prompt_pipeline(
    root: Path,
    config: Mapping[str, Any],
    t_init: int,
    shape: tuple[int, int, int],
    sigma: float | None = None,
) -> None:
    """Scheduler, model_index.json and README.md of a text-to-image pipeline that draws in one step.

    The folder is a copy of the original pipeline's, whose scheduler's configuration is given; a
    latent image is (C, H, W), and `sigma` is a flow's at `t_init`.
    """
    scheduler: Any = one_step_scheduler(config, t_init) if sigma is None else plain_flow(config)
    scheduler.save_pretrained(root / "scheduler")
    index = read_json(root / INDEX)
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    write_text(root / INDEX, json.dumps(index, indent=2) + "\n")
    usage = _WITH_PROMPTS
    if sigma is not None:
        usage = _WITH_PROMPTS_AND_A_FLOW.format(sigma=sigma, shape=", ".join(map(str, shape)))
    add_to_card(root, usage)


_WITH_PACKAGE = """```python
from pecker_fast import OneStepPipeline

images = OneStepPipeline.from_pretrained("this folder")([0, 1]).images  # numbers of classes
```"""

_WITHOUT = """Without pecker_fast, and in one step as well:

```python
from diffusers import DiffusionPipeline

images = DiffusionPipeline.from_pretrained("this folder")(batch_size=2, class_labels=[0, 1]).images
```"""

_WITH_PROMPTS = """# A one-step generator

It was made for one step without guidance; `StableDiffusionPipeline` takes 50 with it unless told:

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this folder")
image = pipeline("a prompt", num_inference_steps=1, guidance_scale=1.0).images[0]
```"""

_WITH_PROMPTS_AND_A_FLOW = """# A one-step generator

It was made for one step without guidance, from noise that is scaled by its sigma:

```python
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this folder")
noise = {sigma} * torch.randn(1, {shape})
image = pipeline("a prompt", latents=noise, sigmas=[{sigma}], guidance_scale=1.0).images[0]
```

FLUX takes tokens and guidance of its own: `F.pixel_unshuffle(noise, 2).flatten(2).mT`, and
`guidance_scale=3.5`; SANA `use_resolution_binning=False`."""
