"""Models from the Hugging Face hub: only the files that are read here, and never a pickle."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, shown
from pecker_fast.progress import note
from pecker_fast.runs.finding import is_hub_id

__all__ = ["files_to_read", "hub_id_of", "local_folder"]

_SMALL = ("*.json", "*merges.txt", "*spiece.model", "*tokenizer.model", "*README.md", "*LICENSE*")
_TOP = "diffusion_pytorch_model"  # other weights at the top are whole pipelines in one file
_PICKLES = re.compile(r"(diffusion_)?pytorch_model[^/]*\.bin")


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
        PeckerError: it is not on the hub, closed to this user, has no safetensors weights, or the
            hub cannot be reached; or a revision of what is a folder.
    """
    name = str(source)
    if not is_hub_id(name):
        if revision is not None:
            raise PeckerError(
                f"{name}: revision {shown(revision)} is for ids of the hub, such as owner/name; "
                "leave it out"
            )
        _check_variant(Path(source), variant)
        return Path(source)
    from huggingface_hub import HfApi, constants, snapshot_download

    offline = local_files_only or constants.HF_HUB_OFFLINE
    note(f"taking {name} from the Hugging Face hub ...")
    try:
        with _without_warnings():
            if offline:
                patterns = list(_SMALL)
            else:
                listed = HfApi(token=token).list_repo_files(name, revision=revision)
                patterns = [glob.escape(file) for file in files_to_read(name, listed, variant)]
            found = snapshot_download(
                name,
                revision=revision,
                token=token,
                local_files_only=offline,
                allow_patterns=patterns,
            )
    except PeckerError:
        raise
    except Exception as error:  # its own of several kinds, those of two HTTP libraries, OSError
        raise PeckerError(f"{name}: {_reason(error, offline)}") from error
    _check_variant(Path(found), variant)
    return Path(found)


def files_to_read(name: str, listed: Collection[str], variant: str | None) -> list[str]:
    """Those of the files of a repository that are read here.

    Raises:
        PeckerError: weights in pickles alone, or no such variant.
    """
    wanted = {file for file in listed for small in _SMALL if PurePosixPath(file).match(small)}
    weights = [
        file for file in map(PurePosixPath, listed)
        if file.suffix == ".safetensors" and (len(file.parts) > 1 or file.stem.startswith(_TOP))
    ]  # fmt: skip
    variants: set[str] = set()
    for folder in {file.parent for file in map(PurePosixPath, listed)}:
        here = [file for file in weights if file.parent == folder]
        others = [
            file.name for file in map(PurePosixPath, listed)
            if file.parent == folder and _PICKLES.fullmatch(file.name)
        ]  # fmt: skip
        if others and not here and folder.name:
            raise PeckerError(
                f"{name}: {folder}/ has its weights in {few(others)}, and pickles may run code: "
                "they are not read; take a revision with .safetensors"
            )
        by_variant: dict[str | None, list[str]] = {}
        for file in here:
            # unet.fp16-00001-of-00002 and unet-00001-of-00002.fp16 alike
            of = re.fullmatch(r"[^.]+(?:\.([^.]+?))?(?:-\d+-of-\d+)?", file.stem)
            by_variant.setdefault(of and of[1], []).append(str(file))
        variants |= {key for key in by_variant if key is not None}
        if here and variant not in by_variant and None not in by_variant:
            raise PeckerError(
                f"{name}: {folder}/ has only weights of the variants {few(sorted(variants))}; give "
                "one of them as variant"
            )
        wanted.update(by_variant.get(variant, by_variant.get(None, [])))
    if variant is not None and variant not in variants:
        known = few(sorted(variants)) if variants else "none"
        raise PeckerError(f"{name}: has no variant {shown(variant)}; its variants: {known}")
    return sorted(wanted)


def _check_variant(folder: Path, variant: str | None) -> None:
    """Refuse a variant that no part has; each alone is taken as it is where it lacks it."""
    if variant is None:
        return
    names = [file.name for file in folder.rglob("*.safetensors*")]
    if not any(f".{variant}{end}" in name for name in names for end in ".-"):
        raise PeckerError(
            f"{folder}: has no weights of the variant {shown(variant)}; leave --variant out, or "
            "name one that is there"
        )


def hub_id_of(path: Path) -> str | None:
    """The id of a folder in the hub's cache; None for any other."""
    for part in path.parts:
        if part.startswith("models--") and part.count("--") == 2:
            return part.removeprefix("models--").replace("--", "/")
    return None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What fails is said once, at the end, not at each of the hub's own tries."""
    import huggingface_hub

    logging: Any = huggingface_hub.utils.logging  # untyped
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _reason(error: Exception, offline: bool) -> str:
    """What went wrong, and what to do."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return "its owner lets in who accepts the terms: do so on its page, then `hf auth login`"
    if "RevisionNotFoundError" in kinds:
        return "the hub has it, but no such revision; look at its branches and tags"
    if "RepositoryNotFoundError" in kinds:
        return (
            "no such folder here, and no such model on the hub that you may read; check the name, "
            "for a private model `hf auth login`"
        )
    if offline:
        return (
            "no such folder here, and not whole in the hub's cache; download it without --offline "
            "(local_files_only, HF_HUB_OFFLINE)"
        )
    lines = str(error).strip().splitlines() or [""]
    return (
        "no such folder here, and the hub cannot be reached "
        f"({type(error).__name__}: {lines[0][:200]}); a folder is given as ./folder"
    )
