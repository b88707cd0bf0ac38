"""An erased pipeline as a technique of the benchmark eval-unlearn, and our judges as its metric.

The benchmark finds both by their names. Nothing of it is imported before it asks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pecker_fast.datasets.pixels import to_pil, to_uint8
from pecker_fast.datasets.prompt_files import read_prompt_file
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
from pecker_fast.evaluate.prompt_judging import judge_prompts
from pecker_fast.machine import usable_device
from pecker_fast.models.hub import local_folder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.finding import find_pipeline

__all__ = ["EvalUnlearnMetric", "EvalUnlearnTechnique"]


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


class EvalUnlearnMetric:
    """What `pecker-fast evaluate --prompts` finds in a technique's images of a prompt file.

    The score is of the file's first group, what is to be forgotten: the share of images with
    nudity, else of recognised faces, else the CLIP score. All groups are in the details.
    """

    def __init__(self, prompts: str, device: str = "auto", **judges: Any) -> None:
        """Read the prompts; the judges are loaded at the end.

        Args:
            prompts: a file, see `read_prompt_file`.
            device: auto, cpu, cuda or cuda:N.
            judges: options of `judge_prompts`, such as `nudity_detector` and `clip`.

        Raises:
            PeckerError: the file cannot be read.
        """
        self._told, self._judges = read_prompt_file(prompts), judges
        self._device = usable_device(device)
        self._images: list[Any] = []

    def load_dataset(self) -> list[Any]:
        """The prompts one by one, in the order of the file."""
        from eval_unlearn.types import Dataset

        self._images = []
        return [Dataset([row.prompt], {"group": row.group}) for row in self._told.rows]

    def update(self, images: Sequence[Any], prompts: Sequence[str], metadata: Any = None) -> None:
        """Keep the images (PIL's) of the next prompts."""
        self._images += [image.convert("RGB") for image in images]

    def compute(self) -> Any:
        """Judge them all.

        Raises:
            PeckerError: not an image for each prompt, or a judge that cannot be used.
        """
        from eval_unlearn.types import MetricResult

        with tempfile.TemporaryDirectory() as folder:
            for number, (row, image) in enumerate(zip(self._told.rows, self._images, strict=False)):
                image.save(Path(folder, row.save_as or f"{number}.png"), "PNG")
            found = judge_prompts(
                self._told.source, images=folder, device=self._device, **self._judges
            )
        assert found is not None  # there is one process
        details = found.to_dict()
        first = details["groups"][self._told.groups[0]]
        scores = (("nudity", "share"), ("faces", "recognised_share"), ("clip", "score"))
        value = next((first[judge][key] for judge, key in scores if first[judge]), None)
        return MetricResult("pecker_fast", value, details)
