"""The tensors of a module that was pickled whole, read without running any of its code.

SiD-LSG's one-step generators are published as `pickle.dump({"ema": unet})`, and whoever unpickles
such a file runs whatever it names. Here nothing that it names is looked up: each class and function
becomes an inert object that keeps what it is given, but for the four functions that rebuild
tensors, in whose place our own stand. What is left is the tree of modules with their tensors.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, shown
from pecker_fast.torch_files import check_stored

__all__ = ["read_pickled_module"]

_DEEPEST = 64  # modules within modules
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_pickled_module(path: Path, entry: str = "ema") -> dict[str, Tensor]:
    """The parameters and buffers of the module at `entry` of a pickled dictionary, by name.

    Raises:
        PeckerError: the file is missing, no such pickle, or holds tensors of another kind.
    """
    if not path.is_file():
        raise PeckerError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            content = _Unpickler(_Whole(file)).load()
    except PeckerError as error:
        raise PeckerError(f"{path}: {error}") from None
    except Exception as error:  # what a damaged pickle raises is not specified
        raise PeckerError(
            f"{path}: cannot be read as a pickle of tensors ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); it may be truncated: copy it again"
        ) from error
    module = content.get(entry) if isinstance(content, dict) else None
    if not isinstance(module, _Inert):
        names = few(content) if isinstance(content, dict) else shown(type(content).__name__)
        raise PeckerError(
            f"{path}: expected a dictionary with a module {entry!r}, as SiD-LSG writes it, got "
            f"{names}"
        )
    tensors = dict(_tensors(module, path))
    if not tensors:
        raise PeckerError(f"{path}: its module {entry!r} has no tensors")
    for name, tensor in tensors.items():
        check_stored(name, tensor, path)
        if tensor.dtype not in _FLOATS:
            raise PeckerError(f"{path}: {shown(name)} is {tensor.dtype}; expected floats")
    return tensors


class _Inert(dict[Any, Any]):
    """Stands for an object of whatever class: keeps its state and its items, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.kept: Any = None

    def __setstate__(self, state: Any) -> None:
        self.kept = state

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def append(self, item: Any) -> None:
        """Of a list's subclass."""

    def extend(self, items: Any) -> None:
        """Likewise."""

    def add(self, item: Any) -> None:
        """Of a set's subclass."""

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return _Inert()


class _Held(_Inert):
    """A storage or a tensor, out of reach of what else the pickle says."""

    value: Any = None


def _held(value: Any) -> _Held:
    found = _Held()
    found.value = value
    return found


def _storage(content: Any) -> _Held:
    if not isinstance(content, bytes):
        raise PeckerError("a storage that is no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the pickle's protocol: the error says it
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(loaded, torch.TypedStorage):
        raise PeckerError(f"a storage that is a {type(loaded).__name__}")
    return _held(loaded)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
    whole = (offset, *size, *stride)
    is_plain = isinstance(storage, _Held) and isinstance(storage.value, torch.TypedStorage)
    if not is_plain or not all(type(n) is int and 0 <= n < 1 << 40 for n in whole):
        raise PeckerError("a tensor that is no array of a storage")
    # torch checks that all of it lies in the storage.
    flat = torch.empty(0, dtype=storage.value.dtype)
    return _held(flat.set_(storage.value._untyped_storage, offset, tuple(size), tuple(stride)))


def _parameter(data: Any, *_: Any) -> _Held:
    if not isinstance(data, _Held) or not isinstance(data.value, Tensor):
        raise PeckerError("a parameter that is no tensor")
    return data


_REBUILD: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}


class _Whole:
    """A file that gives no bytes where it has fewer than it is asked for, and reserves none."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        if size > self._size - self._file.tell():
            raise EOFError("the file ends in the middle of an object")
        return self._file.read(size)


def _refused(unpickler: Any) -> None:
    raise pickle.UnpicklingError("a byte array, of which a module has none")


class _Unpickler(pickle._Unpickler):
    """Looks nothing up, and takes no more memory than the file has bytes.

    Python's own, since the one in C makes room for any number that an object is given in its memo.
    """

    # It would make room before it reads.
    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _refused,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Our own function where tensors are rebuilt, else a class of inert objects."""
        return _REBUILD.get((module, name)) or type("_Named", (_Inert,), {})


def _tensors(
    module: _Inert, path: Path, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module and of those in it, as `state_dict` names them."""
    state = module.kept[0] if isinstance(module.kept, tuple) and module.kept else module.kept
    if depth > _DEEPEST or not isinstance(state, Mapping):
        raise PeckerError(f"{path}: {shown(prefix or 'its module')} is no module")
    parts: list[Any] = [state.get(key) for key in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(part, Mapping) for part in parts):
        raise PeckerError(f"{path}: {shown(prefix or 'its module')} is no module")
    for part in parts[:2]:
        for name, held in part.items():
            if isinstance(held, _Held) and isinstance(held.value, Tensor):
                yield f"{prefix}{name}", held.value
            elif held is not None:
                raise PeckerError(f"{path}: {shown(f'{prefix}{name}')} is no plain tensor")
    for name, inner in parts[2].items():
        if isinstance(inner, _Inert):
            yield from _tensors(inner, path, f"{prefix}{name}.", depth + 1)
