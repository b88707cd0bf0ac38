"""Samples of a model as one .npz, in the layout that guided-diffusion's evaluator reads.

    arr_0        (N, H, W, C) uint8
    labels       (N,) int64, the class or prompt of each image
    class_names  all classes or prompts by index
    provenance   JSON, as `samples.json` of a folder: model, sampler, seed, versions, machine

While images are drawn they lie as a folder of PNG files beside it (FILE.npz.parts), from which a
run that was stopped goes on; the file is written when all of them are there.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from pecker_fast.distributed import Ranks
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.sample_folder import check_same_samples, read_samples, write_samples
from pecker_fast.evaluate.sample_plan import SamplePlan
from pecker_fast.files import replacing

__all__ = ["write_npz"]


def write_npz(
    path: Path,
    plan: SamplePlan,
    ranks: Ranks | None = None,
    progress: str | None = None,
    force: bool = False,
) -> int:
    """Draw images into an .npz; nothing is done where it has them already.

    Args:
        path: the file.
        plan: what is to be drawn, the same on all processes.
        ranks: the processes that share the work. None: this one does it all.
        progress: title of a progress bar on stderr; None for no bar.
        force: delete a file that exists, unless this launch has written it, and start anew.

    Returns:
        How many images were missing before.

    Raises:
        PeckerError: the file exists and is something else, or as `write_samples`.
    """
    ranks = ranks or Ranks()
    parts = path.with_name(path.name + ".parts")
    if ranks.first(lambda: _is_done(path, plan, force, ranks)):
        return 0
    missing = write_samples(parts, plan, ranks, progress, force)
    ranks.first(lambda: _pack(parts, path, plan, None if progress is None else "packing"))
    return missing


def _is_done(path: Path, plan: SamplePlan, force: bool, ranks: Ranks) -> bool:
    if path.is_dir():
        raise PeckerError(f"{path}: is a folder; give the name of a file")
    if force:
        ranks.once(f"removed the file {path.resolve()}", lambda: path.unlink(missing_ok=True))
    if not path.exists():
        return False
    check_same_samples(path, _provenance(path), plan.facts)
    return True


def _provenance(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            content: dict[str, Any] = json.loads(str(file["provenance"]))
            return content
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        raise PeckerError(
            f"{path}: exists, and does not say what drew it; add --force to replace it"
        ) from None


def _pack(parts: Path, path: Path, plan: SamplePlan, progress: str | None) -> None:
    pixels: np.ndarray | None = None
    for index, name in enumerate(tqdm(plan.files, progress, unit="image", disable=not progress)):
        try:
            with Image.open(parts / name) as image:
                one = np.asarray(image)
                one = one[..., None] if one.ndim == 2 else one  # grey
            if pixels is None:
                pixels = np.empty((len(plan.files), *one.shape), np.uint8)
            pixels[index] = one
        except (OSError, SyntaxError, ValueError) as error:
            raise PeckerError(
                f"{parts / name}: cannot be read ({error}); remove it, then start the same "
                "command again"
            ) from error
    assert pixels is not None  # for the type checker: a plan has images
    content = read_samples(parts)
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                arr_0=pixels,
                labels=plan.labels.numpy(),
                class_names=np.array(plan.facts["class_names"]),
                provenance=np.array(json.dumps(content)),
            )
    except OSError as error:
        raise PeckerError(
            f"{path}: cannot be written to ({os.strerror(error.errno or 0)}); all images are in "
            f"{parts}: free some space, then start the same command again"
        ) from error
    shutil.rmtree(parts, ignore_errors=True)
