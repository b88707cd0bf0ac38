"""How valid files are spoiled: tables of changes to JSON, tensors, archives and anything else."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

__all__ = [
    "ANY_FILE", "ARRAYS", "DEEP", "JSON_FILE", "TENSORS", "VALUES", "bomb", "code_pickle", "edit",
    "edit_metadata", "edit_tensors", "in_npz", "put", "values",
]  # fmt: skip

Spoil = Callable[[Path], object]

DEEP = "[" * 100_000 + "]" * 100_000
_RAW = {"deep": DEEP, "digits": "9" * 100_000, "infinity": "1e999", "nan": "NaN"}
_MISSING = object()

VALUES: dict[str, Any] = {
    "missing": _MISSING, "null": None, "true": True, "negative": -5, "zero": 0, "fraction": 1.5,
    "huge": 10**12, "text": "wizard", "empty": "", "escape": "\x1b[31mred\x07", "list": [],
    "pair": [3, 5], "object": {"a": 1}, "nested": [[[1]]], **{name: name for name in _RAW},
}  # fmt: skip
"""Wrong values of a key, by name."""


def values(words: str) -> dict[str, Any]:
    """Those of `VALUES` that are named, with spaces between."""
    return {word: VALUES[word] for word in words.split()}


def edit(file: Path, key: str, value: Any) -> None:
    """Set a dotted key of a JSON file to a value of `VALUES`; list items by number."""
    content = json.loads(file.read_text())
    *above, last = key.split(".")
    place = content
    for part in above:
        place = place[int(part) if isinstance(place, list) else part]
    at: Any = int(last) if isinstance(place, list) else last
    raw = value if isinstance(value, str) and value in _RAW else None
    if value is _MISSING:
        place.pop(at)
    else:
        place[at] = "@raw@" if raw else value
    text = json.dumps(content)
    file.write_text(text.replace('"@raw@"', _RAW[raw]) if raw else text)


def put(content: bytes | str) -> Spoil:
    """Replace what a file holds."""
    data = content.encode() if isinstance(content, str) else content
    return lambda file: (file.unlink(missing_ok=True), file.write_bytes(data))


def _cut(share: float) -> Spoil:
    return lambda file: os.truncate(file, int(share * file.stat().st_size))


def _as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _as_link(target: str) -> Spoil:
    return lambda file: (file.unlink(), file.symlink_to(target))


def _as_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


ANY_FILE: dict[str, Spoil] = {
    "gone": lambda file: file.unlink(),
    "empty": put(b""),
    "half": _cut(0.5),
    "nearly-whole": _cut(0.99),
    "zeros": lambda file: put(bytes(file.stat().st_size))(file),
    "noise": lambda file: put(np.random.default_rng(0).bytes(file.stat().st_size))(file),
    "text": put("not what you expect\n"),
    "escape": put("\x1b]0;title\x07\x1b[31m" * 5),
    "folder": _as_folder,
    "dangling": _as_link("nowhere"),
    "loop": lambda file: _as_link(file.name)(file),
    "device": _as_link("/dev/null"),
    "fifo": _as_fifo,
    "pickle": lambda file: put(code_pickle())(file),
}
"""Changes of a file of whatever kind."""

JSON_FILE: dict[str, Spoil] = {
    "list": put("[1, 2]"),
    "number": put("5"),
    "null": put("null"),
    "string": put('"text"'),
    "object": put("{}"),
    "deep": put(DEEP),
    "deep-objects": put('{"a":' * 100_000 + "1" + "}" * 100_000),
    "digits": put('{"a": ' + "9" * 100_000 + "}"),
    "latin-1": put('{"name": "Käse"}'.encode("latin-1")),
    "utf-16": put('{"name": "x"}'.encode("utf-16")),
    "trailing-comma": put('{"a": 1,}'),
    "surrogate": put('{"\\ud800": "\\udfff"}'),
}
"""Changes of a JSON file as a whole."""


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo harm > harmed.txt",)


def code_pickle() -> bytes:
    """A pickle that writes harmed.txt where it is run."""
    return pickle.dumps({"state_dict": _Code()})


# ---- tensors


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Change the tensors of a safetensors file; its metadata stay."""

    def spoil(file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        change(tensors)
        save_file(tensors, file, metadata=metadata)

    return spoil


def edit_metadata(change: Callable[[dict[str, str]], object]) -> Spoil:
    """Change the metadata of a safetensors file; its tensors stay."""

    def spoil(file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        change(metadata)
        save_file(tensors, file, metadata=metadata)

    return spoil


def _each(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    def all_of_them(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = change(tensor).contiguous()

    return edit_tensors(all_of_them)


def _first(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    def one_of_them(tensors: dict[str, torch.Tensor]) -> None:
        name = sorted(tensors)[0]
        tensors[name] = change(tensors[name]).contiguous()

    return edit_tensors(one_of_them)


def _header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the JSON header of a safetensors file; the data stay where they are."""

    def spoil(file: Path) -> None:
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return spoil


def _entry(key: str, value: Any) -> Spoil:
    def change(header: dict[str, Any]) -> None:
        name = next(name for name in sorted(header) if name != "__metadata__")
        header[name][key] = value

    return _header(change)


def _length(value: int) -> Spoil:
    return lambda file: put(struct.pack("<Q", value) + file.read_bytes()[8:])(file)


def _flip(file: Path, at: int = 20) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x40
    file.write_bytes(content)


TENSORS: dict[str, Spoil] = {
    "header-flipped": _flip,
    "header-long": _length(10**15),
    "header-short": _length(3),
    "header-deep": put(struct.pack("<Q", len(DEEP)) + DEEP.encode()),
    "header-list": put(struct.pack("<Q", 2) + b"[]"),
    "offsets": _entry("data_offsets", [0, 10**12]),
    "offsets-backwards": _entry("data_offsets", [8, 0]),
    "shape-huge": _entry("shape", [2**40, 2**40]),
    "shape-negative": _entry("shape", [-1, 4]),
    "dtype-unknown": _entry("dtype", "F12"),
    "one-missing": edit_tensors(lambda tensors: tensors.pop(sorted(tensors)[0])),
    "half-missing": edit_tensors(
        lambda tensors: [tensors.pop(name) for name in sorted(tensors)[::2]]
    ),
    "none-left": edit_tensors(lambda tensors: tensors.clear()),
    "one-more": edit_tensors(lambda tensors: tensors.update({"lora_A.x": torch.zeros(3)})),
    "escape-name": edit_tensors(lambda tensors: tensors.update({"\x1b[31mx": torch.zeros(3)})),
    "wrapped": edit_tensors(
        lambda tensors: [tensors.update({"base." + n: tensors.pop(n)}) for n in list(tensors)]
    ),
    "longer": _first(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor[None]),
    "flat": _first(lambda tensor: tensor.reshape(1, 1, -1)),
    "no-entries": _first(lambda tensor: tensor.reshape(-1)[:0]),
    "integers": _each(lambda tensor: tensor.to(torch.int64)),
    "booleans": _first(lambda tensor: tensor.bool()),
    "nan": _each(lambda tensor: torch.full(tensor.shape, torch.nan)),
    "infinity": _first(lambda tensor: torch.full(tensor.shape, torch.inf)),
}
"""Changes of a safetensors file."""


# ---- archives of numpy


def in_npz(**arrays: Any) -> Spoil:
    """Replace arrays of an .npz; None takes one out. A callable is given what is there."""

    def spoil(file: Path) -> None:
        with np.load(file) as opened:
            content = dict(opened)
        for name, array in arrays.items():
            array = array(content[name]) if callable(array) else array
            if array is None:
                content.pop(name, None)
            else:
                content[name] = np.asarray(array)
        np.savez(file, **content)

    return spoil


def _members(change: Callable[[str, bytes], bytes | None], method: int = 0) -> Spoil:
    """Change the files in a zip archive; None takes one out."""

    def spoil(file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in content.items():
                changed = change(name, data)
                if changed is not None:
                    archive.writestr(name, changed)

    return spoil


def _field(at_file: int, at_directory: int, value: int) -> Spoil:
    """Set a 16-bit field of every header of a zip archive."""

    def spoil(file: Path) -> None:
        content = bytearray(file.read_bytes())
        for magic, at in ((b"PK\x03\x04", at_file), (b"PK\x01\x02", at_directory)):
            start = content.find(magic)
            while start >= 0:
                content[start + at : start + at + 2] = struct.pack("<H", value)
                start = content.find(magic, start + 4)
        file.write_bytes(content)

    return spoil


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + data


def _images_as(header: str) -> Spoil:
    return _members(lambda name, data: _npy(header) if name.startswith("images") else data)


def _damaged(file: Path) -> None:
    _members(lambda _, data: data, zipfile.ZIP_DEFLATED)(file)
    content = bytearray(file.read_bytes())
    content[200:260] = bytes(60)
    file.write_bytes(content)


def _objects(file: Path) -> None:
    with np.load(file) as opened:
        content = dict(opened)
    content["images"] = np.array([_Code()], dtype=object)
    np.savez(file, **content)


def bomb(megabytes: int, wbits: int = -15) -> bytes:
    """A deflate stream of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    part = bytes(1 << 20)
    first = packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (megabytes - 1) + packer.flush()


def _zip_bomb(file: Path) -> None:
    """The images are 1.5 GB of zeros in 1.5 MB."""
    data, size, crc = bomb(1536), 1536 << 20, 0
    for _ in range(1536):
        crc = zlib.crc32(bytes(1 << 20), crc)
    name = b"images.npy"
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(data), size, len(name), 0)
    local = b"PK\x03\x04" + common + name + data
    directory = b"PK\x01\x02\x14\x00" + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(local), 0)
    file.write_bytes(local + directory + b"PK\x05\x06" + end)


ARRAYS: dict[str, Spoil] = {
    "one-array": lambda file: np.save(open(file, "wb"), np.zeros(3)),
    "no-images": in_npz(images=None),
    "no-labels": in_npz(labels=None),
    "no-members": _members(lambda *_: None),
    "encrypted": _field(6, 8, 1),
    "compression": _field(8, 10, 99),
    "damaged": _damaged,
    "bomb": _zip_bomb,
    "objects": _objects,
    "text-images": in_npz(images=["a", "b"]),
    "text-labels": in_npz(labels=lambda array: array.astype(str)),
    "fraction-labels": in_npz(labels=lambda array: array + 0.5),
    "nan-labels": in_npz(labels=lambda array: array * np.nan),
    "negative-labels": in_npz(labels=lambda array: array - 1),
    "large-labels": in_npz(labels=lambda array: array + 5),
    "huge-labels": in_npz(labels=lambda array: array + 2**62, class_names=None),
    "many-classes": in_npz(labels=lambda array: array * 3 * 10**7, class_names=None),
    "fewer-labels": in_npz(labels=lambda array: array[:-1]),
    "table-of-labels": in_npz(labels=lambda array: np.eye(3)[array]),
    "one-label": in_npz(labels=np.int64(3)),
    "no-image": in_npz(images=lambda array: array[:0], labels=lambda array: array[:0]),
    "three-dimensions": in_npz(images=lambda array: array[:, 0]),
    "two-channels": in_npz(images=lambda array: np.repeat(array, 2, axis=1)),
    "channels-last": in_npz(images=lambda array: array.transpose(0, 2, 3, 1)),
    "other-side": in_npz(images=lambda array: array[..., :5]),
    "no-side": in_npz(images=lambda array: array[..., :0]),
    "complex": in_npz(images=lambda array: array.astype(np.complex64)),
    "dates": in_npz(images=lambda array: array.astype("datetime64[s]")),
    "uint16": in_npz(images=lambda array: array.astype(np.uint16)),
    "records": in_npz(images=np.zeros(4, dtype=[("a", "u1"), ("b", "f4")])),
    "lies-about-shape": _images_as(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1, 100000, 1000000)}"
    ),
    "negative-shape": _images_as(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 1, 8, 8)}"
    ),
    "header-deep": _images_as("(" * 5000 + ")" * 5000),
    "header-code": _images_as("__import__('os').system('touch harmed.txt')"),
    "header-dtype": _images_as("{'descr': 'O', 'fortran_order': False, 'shape': (4,)}"),
    "header-version": _members(
        lambda name, data: b"\x93NUMPY\x09\x00" + data[8:] if "images" in name else data
    ),
    "member-raw": _members(lambda name, data: b"raw" if "images" in name else data),
}  # fmt: skip
"""Changes of an .npz of images and labels."""
