"""The files with the weights of a network: what lies there, and whether it is the network's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, read_json, shown, write_text
from pecker_fast.torch_files import open_tensors

__all__ = [
    "Weights", "as_dtype", "load_network", "mismatch", "of_variant", "save_network", "weights_in",
]  # fmt: skip

Shapes = Mapping[str, tuple[int, ...]]
_FLOATS = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64
}  # fmt: skip
_OLD_WORDS = (".query.", ".key.", ".value.", ".proj_attn.")
_SLACK = 1_000_000  # entries; a network as small as that may be made before it is compared


_VARIANT: ContextVar[str | None] = ContextVar("variant", default=None)


@contextmanager
def of_variant(variant: str | None) -> Iterator[None]:
    """What is loaded in the block is of a variant, such as "fp16", where a part has it.

    As in diffusers, a part without that variant is taken as it is. The parts of a pipeline are
    loaded by its family, in many places that are no different for it.
    """
    token = _VARIANT.set(variant)
    try:
        yield
    finally:
        _VARIANT.reset(token)


@dataclass(frozen=True)
class Weights:
    """The files of one set of weights."""

    files: Sequence[Path]  # all of them; several where they are sharded
    listed: Path  # the index that names them, or the one file
    plain: str  # the name that `listed` would have without a variant
    variant: str | None  # of the weights


def weights_in(folder: Path, name: str) -> Weights:
    """The weights in a folder: of the variant that is asked for, or plain; whole, or in shards.

    The name is that of one plain file, such as model.safetensors.

    Raises:
        PeckerError: they are not there, and the message names what lies there instead; or the index
            of shards names others than lie beside it.
    """
    asked, index = _VARIANT.get(), f"{name}.index.json"
    for variant in (asked, None) if asked else (None,):
        for plain in (name, index):
            listed = folder / (plain if variant is None else _of_variant(plain, variant))
            if listed.is_file():
                files = [listed] if plain == name else _shards(listed)
                return Weights(files, listed, plain, variant)
    kinds = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index.json")
    others = sorted(f.name for f in folder.glob("*") if f.name.endswith(kinds))
    if not others:
        raise PeckerError(f"{folder}: {name} is missing; expected what save_pretrained writes")
    remedy = "load that with diffusers and save it again by save_pretrained, as .safetensors"
    stem = name.removesuffix("safetensors")
    variants = {n[len(stem) :].split(".")[0].split("-")[0] for n in others if n.startswith(stem)}
    if variants := variants - {"safetensors", "bin"}:
        remedy = f"for a variant give --variant, one of {few(sorted(variants))}"
    raise PeckerError(f"{folder}: {name} is missing, there is {few(others)}; {remedy}")


def _of_variant(name: str, variant: str) -> str:
    """As diffusers and transformers call it."""
    stem, last = name.rsplit(".", 1)
    return f"{stem}.{variant}.{last}"


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which must lie beside it."""
    content = read_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named:
        raise PeckerError(f"{index}: expected an object with 'weight_map', got {shown(content)}")
    names = list(dict.fromkeys(named.values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise PeckerError(f"{index}: expected names of files beside it, got {shown(name)}")
        if Path(name).suffix != ".safetensors":
            raise PeckerError(
                f"{index}: names {shown(name)}; only .safetensors are read: save it again by "
                "save_pretrained"
            )
        if not (index.parent / name).is_file():
            raise PeckerError(f"{index}: names {shown(name)}, which is missing; copy it again")
    return [index.parent / name for name in sorted(names)]


def load_network(
    kind: Any, folder: Path, name: str, make: Callable[[], nn.Module], **options: Any
) -> Any:
    """A network of diffusers or transformers, with exactly the weights that its files hold.

    One of diffusers has their precision; of transformers what config.json says.

    Args:
        kind: its class.
        folder: with config.json, which was checked, and the weights.
        name: of the weights' file, were it one.
        make: makes the network that config.json describes; called where tensors take no memory.
        options: for `from_pretrained`.

    Raises:
        PeckerError: the file is missing or damaged, or lacks tensors of the network, or holds
            others, NaN or infinity; or config.json describes no network.
    """
    weights = weights_in(folder, name)
    file = weights.listed
    found, dtype = _shapes_in(weights.files)
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
    of_texts = kind.__module__.startswith("transformers.")
    if not of_texts:
        options |= as_dtype(dtype)
    # diffusers renames the attention of old files, transformers whatever it has renamed since.
    renamed = of_texts or any(word in name for name in found for word in _OLD_WORDS)
    too_large = _entries(expected) > 2 * _entries(found) + _SLACK
    if too_large or (found != expected and not renamed):
        raise _does_not_fit(file, expected, found)
    try:
        with _without_bars() if of_texts else nullcontext():
            loaded, info = kind.from_pretrained(
                str(folder),
                local_files_only=True,
                output_loading_info=True,
                variant=weights.variant,
                **options,
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


def save_network(network: Any, folder: Path) -> None:
    """`save_pretrained` of a network of diffusers, without the place where it was read from."""
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


@contextmanager
def _without_bars() -> Iterator[None]:
    """No bars of transformers over the reading of weights, which takes it no time."""
    import transformers

    logging: Any = transformers.utils.logging  # untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def as_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The option of diffusers' `from_pretrained` for a precision, as this version calls it."""
    import diffusers

    version = tuple(map(int, diffusers.__version__.split(".")[:2]))
    return {"dtype" if version >= (0, 42) else "torch_dtype": dtype}


def float_type(file: Path) -> torch.dtype:
    """Of the floats in a safetensors file; of several types float32.

    Raises:
        PeckerError: it cannot be read.
    """
    with open_tensors(file) as opened:
        kinds = {opened.get_slice(name).get_dtype() for name in opened.keys()} & _FLOATS.keys()
    return _FLOATS[kinds.pop()] if len(kinds) == 1 else torch.float32


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


def _shapes_in(files: Sequence[Path]) -> tuple[Shapes, torch.dtype]:
    """Name -> shape, and their type, from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    types = set()
    for file in files:
        with open_tensors(file) as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}
            found = {name: tuple(part.get_shape()) for name, part in parts.items()}
            kinds = {name: part.get_dtype() for name, part in parts.items()}
        if twice := found.keys() & shapes.keys():
            raise PeckerError(
                f"{file}: {few(twice)} is in another file of {file.parent} too; copy it again"
            )
        for name, kind in kinds.items():
            if name.endswith("position_ids"):
                continue
            if kind not in _FLOATS:
                raise PeckerError(
                    f"{file}: {few([name])} is of type {kind}, expected floats of 16 bits or more; "
                    "take the weights as they were before they were quantized"
                )
            types.add(_FLOATS[kind])
        shapes |= found
    # Of several types one that holds all of them.
    several = torch.float64 if torch.float64 in types else torch.float32
    return shapes, types.pop() if len(types) == 1 else several


def _entries(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
