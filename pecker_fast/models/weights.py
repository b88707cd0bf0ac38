"""The one loader of networks of diffusers and transformers: compared with their files before use.

Both libraries check little of what they read. So a network is made of its config.json on fake
tensors, compared with the headers of its weights, and called once; only then are weights read.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, read_json, shown, write_text
from pecker_fast.torch_files import open_tensors

__all__ = [
    "FLOATS", "PLAIN", "Weights", "as_dtype", "check_config", "check_network", "first_line",
    "load_network", "mismatch", "of_variant", "quiet_libraries", "save_network", "weights_in",
]  # fmt: skip

Shapes = Mapping[str, tuple[int, ...]]
FLOATS = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64
}  # fmt: skip
_OLD_WORDS = (".query.", ".key.", ".value.", ".proj_attn.")  # diffusers renames these
PLAIN = "diffusion_pytorch_model.safetensors"
_SLACK = 1_000_000  # entries; a network as small as that may be made before it is compared
_LIMITS: Mapping[str, tuple[float, float]] = {
    r"layers|blocks|depth": (0, 1000),
    r"_eps(ilon)?$": (1e-30, 1),
    r"dropout|_ratio$": (0, 10),
    r"scal|_theta$|shift": (-1e6, 1e6),
    r"num_train_timesteps": (1, 100_000),
    r"sample_size|patch_size": (1, 1 << 14),
    r"": (-(1 << 24), 1 << 24),
}
"""Of the numbers of a configuration, by words of their names, the first that fits: what lies
outside would take for ever, or more memory than there is, before a library refuses it."""

_VARIANT: ContextVar[str | None] = ContextVar("variant", default=None)


@contextmanager
def of_variant(variant: str | None) -> Iterator[None]:
    """Load weights in the block of a variant, such as "fp16", where a part has it.

    As in diffusers, a part without that variant is taken as it is.
    """
    token = _VARIANT.set(variant)
    try:
        yield
    finally:
        _VARIANT.reset(token)


# ---- files


@dataclass(frozen=True)
class Weights:
    """The files of one set of weights."""

    files: Sequence[Path]  # all of them; several where they are sharded
    listed: Path  # the index that names them, or the one file
    plain: str  # the name that `listed` would have without a variant
    variant: str | None  # of the weights


def weights_in(folder: Path, name: str) -> Weights:
    """Find the weights in a folder: of the variant that is asked for, or plain; whole or in shards.

    Args:
        folder: of the network.
        name: of one plain file, such as model.safetensors.

    Raises:
        PeckerError: they are not there, and the message names what lies there instead; or the index
            of shards names others than lie beside it.
    """
    index = f"{name}.index.json"
    for variant in dict.fromkeys((_VARIANT.get(), None)):
        for plain in (name, index):
            stem, last = plain.rsplit(".", 1)
            listed = folder / (f"{stem}.{variant}.{last}" if variant else plain)
            if listed.is_file():
                files = [listed] if plain == name else _shards(listed)
                return Weights(files, listed, plain, variant)
    kinds = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index.json")
    others = sorted(f.name for f in folder.glob("*") if f.name.endswith(kinds))
    if not others:
        raise PeckerError(f"{folder}: {name} is missing; expected what save_pretrained writes")
    raise PeckerError(
        f"{folder}: {name} is missing, there is {few(others)}; for a variant give --variant; other "
        "formats load with diffusers and save again by save_pretrained, as .safetensors"
    )


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names, which must lie beside it."""
    content = read_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    names = list(named.values()) if isinstance(named, dict) else []
    for name in names or [content]:
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\]+\.safetensors", name):
            raise PeckerError(
                f"{index}: expected a 'weight_map' to .safetensors files beside it, got "
                f"{shown(name)}; save it again by save_pretrained"
            )
        if not (index.parent / name).is_file():
            raise PeckerError(f"{index}: names {shown(name)}, which is missing; copy it again")
    return [index.parent / name for name in sorted(set(names))]


def _shapes_in(files: Sequence[Path]) -> tuple[Shapes, torch.dtype]:
    """Read name -> shape, and the tensors' type, from the headers alone."""
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
            if kind not in FLOATS:
                raise PeckerError(
                    f"{file}: {few([name])} is of type {kind}, expected floats of 16 bits or more; "
                    "take the weights as they were before they were quantized"
                )
            types.add(FLOATS[kind])
        shapes |= found
    # Of several types one that holds all of them.
    several = torch.float64 if torch.float64 in types else torch.float32
    return shapes, types.pop() if len(types) == 1 else several


def check_config(config: Any, made_by: Any, source: object) -> None:
    """Refuse the configuration of a part of diffusers or transformers that is none.

    Args:
        config: what a file holds.
        made_by: what is called with its entries. An entry must be of the type of its default.
        source: names the file in errors.

    Raises:
        PeckerError: it is no object, or an entry is of another type or beyond all measure.
    """
    if not isinstance(config, dict):
        raise PeckerError(f"{source}: expected an object, got {shown(config)}")
    parameters = inspect.signature(made_by).parameters
    for name, value in config.items():
        default = parameters[name].default if name in parameters else None
        kinds = {_kind(leaf) for leaf in _leaves(default)} - {None}
        low, high = next(limits for word, limits in _LIMITS.items() if re.search(word, name))
        for leaf in _leaves(value):
            if kinds and _kind(leaf) not in {*kinds, None}:
                raise PeckerError(
                    f"{source}: {shown(name)} must be of the type of {shown(default)}, got "
                    f"{shown(value)}"
                )
            if _kind(leaf) == "number" and not low <= leaf <= high:
                raise PeckerError(
                    f"{source}: {shown(name)} must lie in [{low}, {high}], got {shown(value)}"
                )


def _leaves(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, (dict, list, tuple)):
        for part in inner:
            yield from _leaves(part)
    else:
        yield value


def _kind(value: Any) -> str | None:
    kinds = {bool: "truth", int: "number", float: "number", str: "text"}
    return kinds.get(type(value))


# ---- networks


def check_network(
    kind: Any, folder: Path, call: Callable[[Any], object]
) -> tuple[Weights, torch.dtype, PeckerError]:
    """Compare a network with its files, and call it, without reading a weight.

    Args:
        kind: its class, of diffusers or transformers.
        folder: with config.json and the weights.
        call: uses it as it will be used; its tensors hold no numbers.

    Returns:
        Its files, the type of the weights in them, and what to raise where these turn out to be
        another network's as they are read.

    Raises:
        PeckerError: a file is missing or damaged; config.json describes no network that can be
            used; or the weights lack tensors of it, or hold others.
    """
    file, of_texts = folder / "config.json", _of_texts(kind)
    config = read_json(file)
    check_config(config, kind.config_class.__init__ if of_texts else kind.__init__, file)
    said = config.get("_class_name", kind.__name__)
    if said != kind.__name__:
        raise PeckerError(
            f"{folder}: is a {shown(said)}; expected {kind.__name__}: take both from one pipeline"
        )
    weights = weights_in(folder, "model.safetensors" if of_texts else PLAIN)
    found, dtype = _shapes_in(weights.files)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _usable(fake, file, kind):
        network = kind(kind.config_class(**config)) if of_texts else kind.from_config(config)
        expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    remedy = "copy it and config.json again"
    if any(".lora_" in name or ".base_layer." in name for name in found):
        remedy = "these are PEFT's: merge_and_unload() first, then save_pretrained"
    misfit = PeckerError(f"{weights.listed}: {mismatch(expected, found)}; {remedy}")
    # transformers renames what it has renamed since, diffusers the attention of old files: what is
    # missing then is known when they have read it.
    renamed = of_texts or any(word in name for name in found for word in _OLD_WORDS)
    needs, has = (sum(map(math.prod, shapes.values())) for shapes in (expected, found))
    if needs > 2 * has + _SLACK or (found != expected and not renamed):
        raise misfit
    with _usable(fake, file, kind):
        call(network.eval())
    return weights, dtype, misfit


def load_network(kind: Any, folder: Path, call: Callable[[Any], object]) -> Any:
    """Load a network with exactly the weights that its files hold.

    One of diffusers has their precision; of transformers what config.json says.

    Args:
        kind: see `check_network`.
        folder: see `check_network`.
        call: see `check_network`.

    Raises:
        PeckerError: see `check_network`; or the weights hold NaN or infinity.
    """
    weights, dtype, misfit = check_network(kind, folder, call)
    # Without the package accelerate diffusers would say at length that it does just this.
    options = {} if _of_texts(kind) else {"low_cpu_mem_usage": False, **as_dtype(dtype)}
    options |= {"local_files_only": True, "output_loading_info": True, "variant": weights.variant}
    try:
        with quiet_libraries():
            loaded, info = kind.from_pretrained(str(folder), **options)
    except Exception as error:  # both libraries raise many kinds
        if "size mismatch" in str(error) or "mismatched" in str(error):
            raise misfit from error
        raise PeckerError(f"{weights.listed}: cannot be read ({first_line(error)})") from error
    # They would go on with random values for what is missing. Position numbers are constants.
    wrong = [info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    if any(not str(key).endswith("position_ids") for keys in wrong for key in keys):
        raise misfit
    for name, value in loaded.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise PeckerError(
                f"{weights.listed}: {few([name])} holds NaN or infinity; the training that it "
                "comes from diverged: take earlier weights"
            )
    return loaded


def save_network(network: Any, folder: Path) -> None:
    """`save_pretrained` of a network of diffusers, without the place where it was read from."""
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def as_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the option of diffusers' `from_pretrained` for a precision, in this version of it."""
    import diffusers

    version = tuple(map(int, diffusers.__version__.split(".")[:2]))
    return {"dtype" if version >= (0, 42) else "torch_dtype": dtype}


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep diffusers, transformers and the hub's library from saying what is said in a line here.

    Only errors are said, and no bars over the reading of weights, which takes no time.
    """
    libraries = ("diffusers.utils", "transformers.utils", "huggingface_hub.utils")
    logs: list[Any] = [sys.modules[n].logging for n in libraries if n in sys.modules]  # untyped
    before = [log.get_verbosity() for log in logs]
    bars = [log for log in logs if hasattr(log, "is_progress_bar_enabled")]
    bars = [log for log in bars if log.is_progress_bar_enabled()]
    for log in logs:
        log.set_verbosity_error()
    for log in bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.set_verbosity(level)
        for log in bars:
            log.enable_progress_bar()


def mismatch(expected: Shapes, found: Shapes) -> str:
    """Return missing, unexpected and differently shaped tensors, a few of each by name."""
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


def first_line(error: BaseException) -> str:
    """Return what an exception says, in a line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _of_texts(kind: Any) -> bool:
    return str(kind.__module__).startswith("transformers.")


@contextmanager
def _usable(fake: FakeTensorMode, file: Path, kind: Any) -> Iterator[None]:
    """Make and call a network without memory; whatever it raises becomes one line."""
    log = logging.getLogger(FakeTensorMode.__module__)  # it says of itself what it raises
    log.disabled = True
    try:
        with fake, torch.no_grad(), quiet_libraries():
            yield
    except Exception as error:  # of whatever kind; the constructors check little themselves
        raise PeckerError(
            f"{file}: describes no {kind.__name__} that can be used ({first_line(error)})"
        ) from error
    finally:
        log.disabled = False
