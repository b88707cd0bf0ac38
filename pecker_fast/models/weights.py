"""The one file with the weights of a network: what lies there, and whether it is the network's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import few

__all__ = ["load_network", "mismatch", "weights_in"]

Shapes = Mapping[str, tuple[int, ...]]
_FLOATS = ("F64", "F32", "F16", "BF16")
_OLD_WORDS = (".query.", ".key.", ".value.", ".proj_attn.")
_SLACK = 1_000_000  # entries; a network as small as that may be made before it is compared


def weights_in(folder: Path, name: str) -> Path:
    """The file of that name in a folder.

    Raises:
        PeckerError: it is not there; the message names the weights that lie there instead.
    """
    file = folder / name
    if file.is_file():
        return file
    kinds = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index.json")
    others = sorted(f.name for f in folder.glob("*") if f.name.endswith(kinds))
    if not others:
        raise PeckerError(f"{folder}: {name} is missing; expected what save_pretrained writes")
    raise PeckerError(
        f"{folder}: {name} is missing, there is {few(others)}; load that with diffusers (a variant "
        'by variant="fp16") and save it again by save_pretrained, in one .safetensors file'
    )


def load_network(
    kind: Any, folder: Path, name: str, make: Callable[[], nn.Module], **options: Any
) -> Any:
    """A network of diffusers or transformers, with exactly the weights that its file holds.

    Args:
        kind: its class.
        folder: with config.json, which was checked, and the weights.
        name: of the weights' file.
        make: makes the network that config.json describes; called where tensors take no memory.
        options: for `from_pretrained`.

    Raises:
        PeckerError: the file is missing or damaged, or lacks tensors of the network, or holds
            others, NaN or infinity; or config.json describes no network.
    """
    file = weights_in(folder, name)
    found = _shapes_in(file)
    try:
        with torch.device("meta"):
            network = make()
    except PeckerError as error:
        raise PeckerError(f"{folder / 'config.json'}: {error}") from error
    except Exception as error:  # of whatever kind; the constructors check little themselves
        raise PeckerError(
            f"{folder / 'config.json'}: describes no {kind.__name__} ({_first_line(error)})"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # diffusers renames the attention of old files, transformers whatever it has renamed since.
    renamed = kind.__module__.startswith("transformers.") or any(
        word in name for name in found for word in _OLD_WORDS
    )
    too_large = _entries(expected) > 2 * _entries(found) + _SLACK
    if too_large or (found != expected and not renamed):
        raise _does_not_fit(file, expected, found)
    try:
        loaded, info = kind.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, **options
        )
    except Exception as error:  # both libraries raise many kinds
        if found != expected:
            raise _does_not_fit(file, expected, found) from error
        raise PeckerError(f"{file}: cannot be read ({_first_line(error)})") from error
    # They would go on with random values for what is missing. Position numbers are constants.
    wrong = [info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    if any(not str(key).endswith("position_ids") for keys in wrong for key in keys):
        raise _does_not_fit(file, expected, found)
    for name, value in loaded.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise PeckerError(
                f"{file}: {few([name])} holds NaN or infinity; the training that it comes from "
                "diverged: take earlier weights"
            )
    return loaded


def mismatch(expected: Shapes, found: Shapes) -> str:
    """Missing, unexpected and differently shaped tensors, a few of each by name."""
    other = {n: shape for n, shape in expected.items() if n in found and found[n] != shape}
    parts = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "shaped otherwise": list(other),
    }
    said = [f"{len(names)} {what}: {few(names)}" for what, names in parts.items() if names]
    if other:
        name, shape = next(iter(other.items()))
        said[-1] += f", the first {found[name]} instead of {shape}"
    return f"does not fit: {'; '.join(said)}"


def _does_not_fit(file: Path, expected: Shapes, found: Shapes) -> PeckerError:
    remedy = "copy it and config.json again"
    if any(".lora_" in name or ".base_layer." in name for name in found):
        remedy = "these are PEFT's: merge_and_unload() first, then save_pretrained"
    return PeckerError(f"{file}: {mismatch(expected, found)}; {remedy}")


def _shapes_in(file: Path) -> Shapes:
    """Name -> shape, from the header alone."""
    try:
        with open(file, "rb"), safe_open(file, framework="pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
            kinds = {name: part.get_dtype() for name, part in parts.items()}
    except OSError as error:
        raise PeckerError(f"{file}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise PeckerError(
            f"{file}: cannot be read as a safetensors file ({_first_line(error)}); it may be "
            "truncated: copy it again"
        ) from error
    for name, kind in kinds.items():
        if kind not in _FLOATS and not name.endswith("position_ids"):
            raise PeckerError(
                f"{file}: {few([name])} is of type {kind}, expected floats of 16 bits or more; "
                "take the weights as they were before they were quantized"
            )
    return shapes


def _entries(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
