"""Images of prompts, drawn by a pipeline or given, judged group by group.

Groups are never pooled: a perfect erasure lowers the CLIP score of what was to be forgotten.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pecker_fast.datasets.image_files import images_in, load_image_files, read_image
from pecker_fast.datasets.pixels import check_memory, to_pil
from pecker_fast.datasets.prompt_files import ALL, PromptFile, PromptRow, read_prompt_file
from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.defaults import default_steps
from pecker_fast.evaluate.fidelity import FidelityFigures, Inception
from pecker_fast.evaluate.measures import Measure, load_measures
from pecker_fast.evaluate.nudity import NudeNetDetector
from pecker_fast.evaluate.prompt_judgement import GroupFigures, PromptJudgement
from pecker_fast.evaluate.sample_plan import files_of_rows, prompt_plan
from pecker_fast.evaluate.samples import write_samples
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.machine import machine_facts, versions
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.finding import find_pipeline

__all__ = ["judge_prompts"]

_AT_ONCE = 16  # images in memory
_COMPARED = ("keep", ALL)  # groups that are held against real images

_Path = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class _Judges:
    """Whatever judges."""

    measures: Mapping[str, Measure] = field(default_factory=dict)
    inception: Inception | None = None
    real: Tensor | None = None  # (N, C, H, W) uint8
    real_source: str = ""


@dataclass(frozen=True)
class _Drawn:
    """Images on disk, one for each row, and what is known of how they were drawn."""

    rows: Sequence[PromptRow]
    files: Sequence[Path]
    about: dict[str, Any]


def judge_prompts(
    prompts: _Path,
    pipeline: _Path | None = None,
    *,
    images: _Path | None = None,
    samples: _Path | None = None,
    nudity_detector: _Path | None = None,
    nudity_threshold: float | None = None,
    nudity_channel_order: str | None = None,
    clip: _Path | None = None,
    faces: str | None = None,
    real: _Path | None = None,
    inception: _Path | None = None,
    per_prompt: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    t_init: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    force: bool = False,
    device: torch.device | str = "cpu",
    ranks: Ranks | None = None,
) -> PromptJudgement | None:
    """What `pecker-fast evaluate --prompts` does: the arguments are its options.

    Args:
        prompts: a CSV file or a text file of captions, see `read_prompt_file`.
        pipeline: the folder of a pipeline, which draws the images that are judged.
        images: or a folder of images: one that `samples` was, or any with an image for each row,
            in the order of their names.
        samples: folder that gets the images; what was stopped goes on with them. Needed with
            `pipeline`.
        nudity_detector: ONNX file in NudeNet's format.
        nudity_threshold: lowest score that counts. None: 0.25.
        nudity_channel_order: "rgb" or "bgr", as published counts are. None: "rgb".
        clip: CLIP folder.
        faces: a recogniser, trusted:MODULE:OBJECT.
        real: real images, for FID of the group to keep, or of a file without groups. Generated
            ones are resized to theirs.
        inception: file of the Inception weights, for FID.
        per_prompt: images of each row. None: 1.
        steps: None: 1 for an erased pipeline, 50 for another.
        guidance: of many steps. None: each row's own, else 7.5.
        negative: what guidance leads away from.
        t_init: where one step starts. None: what the pipeline says.
        seed: of the noise, where the file has no seeds. None: 0.
        batch_size: images drawn at a time. None: by their size.
        force: replace other samples that the folder holds.
        device: where to draw and to judge.
        ranks: the processes that draw together. None: this one alone.

    Returns:
        The figures; None on all processes but the first.

    Raises:
        PeckerError: arguments that do not go together, or something that is missing or broken.
    """
    drawing = (per_prompt, steps, guidance, negative, t_init, seed, samples, batch_size)
    for is_wrong, message in (
        ((pipeline is None) == (images is None),
         "give --pipeline FOLDER or --images FOLDER, and not both: one draws, one has images"),
        (images is not None and any(value is not None for value in drawing),
         ("--per-prompt, --steps, --guidance, --negative, --t-init, --seed, --batch-size and "
          "--samples say how a pipeline draws; --images has its images already")),
        (pipeline is not None and samples is None,
         "--pipeline needs --samples FOLDER, where the images go; what is stopped goes on there"),
        ((real is None) != (inception is None), "--real and --inception need each other"),
        (not 1 <= (per_prompt or 1) <= 10_000, "--per-prompt must be from 1 to 10,000"),
    ):  # fmt: skip
        if is_wrong:
            raise PeckerError(f"evaluate: {message}")
    place, ranks = torch.device(device), ranks or Ranks()
    told = read_prompt_file(prompts)
    # Images that get names are drawn for others, who may be the only ones to judge.
    if all(judge is None for judge in (nudity_detector, clip, faces, real)) and (
        images is not None or told.rows[0].save_as is None
    ):
        raise PeckerError(
            "evaluate: nothing to judge by; give --nudity-detector, --clip, --faces, or real images"
        )
    judges = _Judges()

    def load() -> None:  # before hours of drawing: what is wrong with a file comes out now
        nonlocal judges
        shown = None if real is None else load_image_files(real, progress="reading")
        judges = _Judges(
            measures=load_measures(
                nudity_detector=nudity_detector,
                nudity_threshold=nudity_threshold,
                nudity_channel_order=nudity_channel_order,
                clip=clip,
                faces=faces,
                device=place,
            ),
            inception=None if inception is None else Inception.load(inception, place),
            real=None if shown is None else shown.images,
            real_source="" if shown is None else shown.source,
        )

    ranks.first(load)
    if images is not None:
        if not ranks.is_first:
            return None
        ranks = Ranks()
        drawn = _Drawn(told.rows, _files_of(Path(images), told), {})
    else:
        assert pipeline is not None and samples is not None  # checked above
        drawer = PipelineFolder.load(find_pipeline(Path(pipeline)) or pipeline)
        drawer.network.to(place).eval()
        if steps is None:
            steps = default_steps(str(drawer.description.get("kind")), None)
        sampler = Sampler(
            steps, seed or 0, t_init, batch_size, guidance=guidance, negative=negative or ""
        )
        plan, rows = prompt_plan(drawer, pipeline, told, per_prompt or 1, sampler)
        write_samples(Path(samples), plan, ranks, "sampling", force)
        if not ranks.is_first:
            return None
        said = drawer.description.get("forget")
        about = {
            "drawn": plan.facts["sampler"],
            "network": plan.facts["model"]["weights"],
            "forgot": [str(each) for each in said[:3]] if isinstance(said, list) else [],
        }
        drawn = _Drawn(rows, [Path(samples, file) for file in plan.files], about)
    return PromptJudgement(
        source=str(pipeline if images is None else images),
        from_files=images is not None,
        prompts=told.source,
        prompts_digest=told.digest,
        per_prompt=per_prompt or 1,
        groups={group: _judged(judges, group, drawn) for group in told.groups},
        notes=_notes(judges),
        machine=machine_facts(place),
        processes=ranks.size,
        versions=versions(),
        **drawn.about,
    )


def _files_of(folder: Path, told: PromptFile) -> list[Path]:
    """The image of each row in a folder: one that `samples` was, or any."""
    if not folder.is_dir():
        raise PeckerError(f"{folder}: no such folder; expected one with an image for each prompt")
    folders, names = files_of_rows(told.rows, told.groups)
    if any((folder / name).is_dir() for name in folders):
        for name, part in folders.items():
            there = list(images_in(folder / name)) if (folder / name).is_dir() else []
            _check_count(folder / name, len(there), told, part["count"])
        return [folder / name for name in names]
    files = sorted(images_in(folder), key=_natural)
    named = [folder / row.save_as for row in told.rows if row.save_as is not None]
    if lost := sorted(set(named) - set(files)):
        raise PeckerError(f"{lost[0]}: no such image; {told.source} names it")
    if named:
        return named
    _check_count(folder, len(files), told, len(told.rows))
    return files


def _check_count(folder: Path, found: int, told: PromptFile, wanted: int) -> None:
    if found != wanted:
        raise PeckerError(
            f"{folder}: holds {found:,} images, and {told.source} {wanted:,} prompts for them; "
            "expected one for each, in the order of their names"
        )


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts 10.png behind 9.png."""
    return [
        (int(part), "") if part.isdecimal() and part.isascii() else (-1, part)
        for part in re.split(r"(\d+)", file.name)
    ]


def _judged(judges: _Judges, group: str, drawn: _Drawn) -> GroupFigures:
    """The figures of one group."""
    chosen = [index for index, row in enumerate(drawn.rows) if row.group == group]
    rows, files = [drawn.rows[i] for i in chosen], [drawn.files[i] for i in chosen]
    prompts = [row.prompt for row in rows]

    def images() -> Iterator[Tensor]:
        for first in range(0, len(files), _AT_ONCE):
            yield _pixels(files[first : first + _AT_ONCE]).float() / 255

    labels = [row.label for row in rows]
    found = {
        name: measure.measure(images(), prompts, labels)
        for name, measure in judges.measures.items()
    }
    fidelity = None
    if judges.inception is not None and judges.real is not None and group in _COMPARED:
        fidelity = _fidelity(judges.inception, judges.real, judges.real_source, group, files)
    return GroupFigures(len(set(prompts)), len(rows), found, fidelity)


def _fidelity(
    inception: Inception, real: Tensor, real_source: str, group: str, files: Sequence[Path]
) -> FidelityFigures:
    """FID and its like of all images of a group."""
    size = (int(real.shape[3]), int(real.shape[2]))
    check_memory(len(files) * 3 * size[0] * size[1], f"{len(files):,} images of {group}")
    parts = range(0, len(files), _AT_ONCE)
    pixels = torch.cat([_pixels(files[first : first + _AT_ONCE], size) for first in parts])
    return inception.figures(pixels, group, real, real_source)


def _pixels(files: Sequence[Path], size: tuple[int, int] | None = None) -> Tensor:
    """(n, 3, H, W) uint8 of image files; resized to (width, height) if asked for."""
    found: list[Tensor] = []
    for file in files:
        pixels = read_image(file)
        if size is not None and (pixels.shape[2], pixels.shape[1]) != size:
            resized = to_pil(pixels).resize(size, Image.Resampling.LANCZOS)
            pixels = torch.from_numpy(np.array(resized)).reshape(size[1], size[0], -1)
            pixels = pixels.permute(2, 0, 1)
        found.append(pixels.expand(3, -1, -1))
        if found[-1].shape != found[0].shape:
            raise PeckerError(f"images of two sizes: {files[0]} and {file}; all must have one size")
    return torch.stack(found)


def _notes(judges: _Judges) -> list[str]:
    """In what the figures differ from published ones."""
    found = []
    detector = judges.measures.get("nudity")
    if isinstance(detector, NudeNetDetector) and detector.channel_order == "rgb":
        found.append(
            "published counts of nudity are of NudeNet's own package, which feeds the channels as "
            "BGR; for those take --nudity-channel-order bgr"
        )
    if judges.inception is not None and not judges.inception.published:
        found.append(
            f"{judges.inception.weights} is not the file of Inception weights that published "
            "figures rest on: no figure taken with it compares with those"
        )
    return found
