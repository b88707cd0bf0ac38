"""An erased pipeline as a technique of the benchmark eval-unlearn, which finds it by its name.

Nothing of that package is imported: a technique is a class that makes images of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pecker_fast.datasets.pixels import to_pil, to_uint8
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
from pecker_fast.machine import usable_device
from pecker_fast.models.hub import local_folder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.finding import find_pipeline

__all__ = ["EvalUnlearnTechnique"]


class EvalUnlearnTechnique:
    """What `erase` made of a text-to-image pipeline; `technique: {name: pecker_fast}`.

    Example:
        >>> EvalUnlearnTechnique(pipeline="run").generate(["a cat"], seed=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        pipeline: str,
        erase_concept: str | None = None,
        device: str = "auto",
        steps: int = 1,
        guidance: float = 1.0,
        **hub: Any,
    ) -> None:
        """Load it.

        Args:
            pipeline: the directory of a run, the folder of a pipeline, or its id on the hub.
            erase_concept: what was erased, which the benchmark reads by itself.
            device: auto, cpu, cuda or cuda:N.
            steps: 1 for a generator; more to draw the original beside it.
            guidance: 1 for a generator.
            hub: `revision`, `variant`, `token`, `local_files_only`.

        Raises:
            PeckerError: no pipeline is there, or it cannot be read.
        """
        folder = local_folder(Path(pipeline), **hub)
        found = find_pipeline(folder)
        if found is None:
            raise PeckerError(
                f"{pipeline}: holds no text-to-image pipeline; give what `erase --pipeline` made"
            )
        place = usable_device(device)
        loaded = PipelineFolder.load(found, hub.get("variant"))
        self._network = loaded.network.to(place).eval()
        self._sampler = PipelineSampler(loaded, place)
        self._steps, self._guidance = steps, guidance

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seed: int | None = None, **options: Any
    ) -> list[Any]:
        """An image of each prompt.

        Args:
            prompts: N texts.
            seed: of the noise. None: 0.
            options: `num_inference_steps` and `guidance_scale`, where a metric has its own.

        Returns:
            N images of PIL.
        """
        latents = self._sampler.latents(
            self._network,
            list(prompts),
            seed or 0,
            options.get("num_inference_steps", self._steps),
            guidance=options.get("guidance_scale", self._guidance),
        )
        pixels = to_uint8(self._sampler.images(latents) * 2 - 1)
        return [to_pil(image) for image in pixels]
