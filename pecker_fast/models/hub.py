"""Models from the Hugging Face hub: only the files that are read here, and never a pickle."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from pecker_fast.errors import PeckerError
from pecker_fast.files import shown
from pecker_fast.models.weights import first_line, quiet_libraries
from pecker_fast.progress import note
from pecker_fast.runs.finding import is_hub_id

__all__ = ["files_to_read", "hub_id_of", "local_folder"]

_SMALL = ("*.json", "*merges.txt", "*spiece.model", "*tokenizer.model", "*README.md", "*LICENSE*")
_TOP = "diffusion_pytorch_model"  # other weights at the top are whole pipelines in one file
# unet.fp16-00001-of-00002 and unet-00001-of-00002.fp16 alike
_WEIGHTS = re.compile(r"[^.]+(?:\.(?P<variant>[^.]+?))?(?:-\d+-of-\d+)?\.safetensors")

_REASONS = {
    "GatedRepoError": (
        "its owner lets in who accepts the terms: do so on its page, then `hf auth login`"
    ),
    "RevisionNotFoundError": (
        "the hub has it, but no such revision; look at its branches and tags"
    ),
    "RepositoryNotFoundError": (
        "no such folder here, and no such model on the hub that you may read; check the name, for "
        "a private model `hf auth login`"
    ),
    "LocalEntryNotFoundError": (
        "no such folder here, and not whole in the hub's cache; download it without --offline "
        "(local_files_only, HF_HUB_OFFLINE)"
    ),
}
"""What went wrong, and what to do, by the hub's exception."""


def local_folder(
    source: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a model: `source` itself, or what the hub has under that id.

    Args:
        source: a path, or an id `owner/name`. What exists is a path, and so is what begins with a
            dot or a slash: nothing is downloaded for it.
        revision: branch, tag or commit on the hub. None: its main branch.
        variant: of the weights, such as "fp16"; parts that do not have it are taken as they are.
        token: for the hub. None: as huggingface_hub finds it, from `hf auth login` or HF_TOKEN.
        local_files_only: take what was downloaded before.

    Raises:
        PeckerError: it is not on the hub, closed to this user, lacks the variant, or the hub cannot
            be reached; or a revision of what is a folder.
    """
    name, found = str(source), Path(source)
    if is_hub_id(name):
        found = _snapshot(name, revision, variant, token, local_files_only)
    elif revision is not None:
        raise PeckerError(
            f"{name}: revision {shown(revision)} is for ids of the hub, such as owner/name; leave "
            "it out"
        )
    _check_variant(name, [file.name for file in found.rglob("*.safetensors")], variant)
    return found


def _check_variant(name: str, files: Collection[str], variant: str | None) -> None:
    """Refuse a variant that no part has; each alone is taken as it is where it lacks it."""
    matches = [_WEIGHTS.fullmatch(PurePosixPath(file).name) for file in files]
    if variant is not None and not any(m and m["variant"] == variant for m in matches):
        raise PeckerError(
            f"{name}: has no weights of the variant {shown(variant)}; leave --variant out, or name "
            "one that is there"
        )


def _snapshot(
    name: str, revision: str | None, variant: str | None, token: str | bool | None, offline: bool
) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    offline = offline or constants.HF_HUB_OFFLINE
    note(f"taking {name} from the Hugging Face hub ...")
    patterns = list(_SMALL)
    try:
        with quiet_libraries():  # what fails is said once, at the end, not at each of its own tries
            if not offline:
                listed = HfApi(token=token).list_repo_files(name, revision=revision)
                _check_variant(name, listed, variant)
                patterns = [glob.escape(file) for file in files_to_read(listed, variant)]
            return Path(
                snapshot_download(
                    name,
                    revision=revision,
                    token=token,
                    local_files_only=offline,
                    allow_patterns=patterns,
                )
            )
    except PeckerError:
        raise
    except Exception as error:  # its own of several kinds, those of two HTTP libraries, OSError
        kinds = [kind.__name__ for kind in type(error).__mro__]
        unknown = (
            f"no such folder here, and the hub cannot be reached ({kinds[0]}: "
            f"{first_line(error)}); a folder is given as ./folder"
        )
        reason = next((_REASONS[kind] for kind in kinds if kind in _REASONS), unknown)
        raise PeckerError(f"{name}: {reason}") from error


def files_to_read(listed: Collection[str], variant: str | None) -> list[str]:
    """Those of the files of a repository that are read here; of weights one variant a folder."""
    wanted = {file for file in listed for small in _SMALL if PurePosixPath(file).match(small)}
    weights: dict[PurePosixPath, dict[str | None, list[str]]] = {}
    for file in map(PurePosixPath, listed):
        match = _WEIGHTS.fullmatch(file.name)
        if match and (len(file.parts) > 1 or file.stem.startswith(_TOP)):
            weights.setdefault(file.parent, {}).setdefault(match["variant"], []).append(str(file))
    for here in weights.values():
        wanted.update(here.get(variant, here.get(None, [])))
    return sorted(wanted)


def hub_id_of(path: Path) -> str | None:
    """The id of a folder in the hub's cache; None for any other."""
    for part in path.parts:
        if part.startswith("models--") and part.count("--") == 2:
            return part.removeprefix("models--").replace("--", "/")
    return None
