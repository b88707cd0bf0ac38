"""How valid files are spoiled: tables of changes to JSON, tensors, archives and anything else."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

__all__ = ["ANY_FILE", "ARRAYS", "DEEP", "JSON_FILE", "TENSORS", "Spoil", "edit", "metadata", "put"]

Spoil = Callable[[Path], object]

DEEP = "[" * 100_000 + "]" * 100_000


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo harm > harmed.txt",)


def put(content: bytes | str) -> Spoil:
    """Replace what a file holds."""
    data = content.encode() if isinstance(content, str) else content
    return lambda file: (file.unlink(missing_ok=True), file.write_bytes(data))


def edit(key: str, value: Any) -> Spoil:
    """Set a dotted key of a JSON file, list items by number; `...` takes it out."""

    def spoil(file: Path) -> None:
        content = place = json.loads(file.read_text())
        *above, last = (int(part) if part.isdecimal() else part for part in key.split("."))
        for part in above:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
        file.write_text(json.dumps(content))

    return spoil


def _as(make: Callable[[Path], object]) -> Spoil:
    return lambda file: (file.unlink(), make(file))


ANY_FILE: dict[str, Spoil] = {
    "gone": lambda file: file.unlink(),
    "empty": put(b""),
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "noise": lambda file: put(np.random.default_rng(0).bytes(file.stat().st_size))(file),
    "escape": put("\x1b]0;title\x07\x1b[31m" * 5),
    "folder": _as(Path.mkdir),
    "dangling": _as(lambda file: file.symlink_to("nowhere")),
    "device": _as(lambda file: file.symlink_to("/dev/null")),
    "fifo": _as(lambda file: os.mkfifo(file)),
    "pickle": put(pickle.dumps({"state_dict": _Code()})),
}
JSON_FILE: dict[str, Spoil] = {
    "list": put("[1, 2]"),
    "null": put("null"),
    "deep": put(DEEP),
    "digits": put('{"a": ' + "9" * 100_000 + "}"),
    "latin-1": put('{"name": "Käse"}'.encode("latin-1")),
    "surrogate": put('{"\\ud800": "\\udfff"}'),
}


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Change the tensors of a safetensors file; its metadata stay."""

    def spoil(file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        change(tensors)
        save_file(tensors, file, metadata=about)

    return spoil


def metadata(key: str, value: str | None) -> Spoil:
    """Change an entry of a safetensors file's metadata; None takes it out."""

    def change(header: dict[str, Any]) -> None:
        about = header.setdefault("__metadata__", {})
        about.pop(key, None)
        if value is not None:
            about[key] = value

    return _header(change)


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


def _first(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    def one_of_them(tensors: dict[str, torch.Tensor]) -> None:
        name = sorted(tensors)[0]
        tensors[name] = change(tensors[name]).contiguous()

    return _tensors(one_of_them)


TENSORS: dict[str, Spoil] = {
    "long header": lambda file: put(struct.pack("<Q", 10**15) + file.read_bytes()[8:])(file),
    "deep header": put(struct.pack("<Q", len(DEEP)) + DEEP.encode()),
    "offsets": _entry("data_offsets", [0, 10**12]),
    "huge shape": _entry("shape", [2**40, 2**40]),
    "unknown dtype": _entry("dtype", "F12"),
    "one missing": _tensors(lambda tensors: tensors.pop(sorted(tensors)[0])),
    "one more": _tensors(lambda tensors: tensors.update({"lora_A.x": torch.zeros(3)})),
    "name of escapes": _tensors(lambda tensors: tensors.update({"\x1b[31mx": torch.zeros(3)})),
    "longer": _first(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor[None]),
    "no entries": _first(lambda tensor: tensor.reshape(-1)[:0]),
    "integers": _tensors(lambda tensors: tensors.update({n: t.long() for n, t in tensors.items()})),
    "infinity": _first(lambda tensor: torch.full(tensor.shape, torch.inf)),
}


def _in_npz(name: str, change: Callable[[Any], Any]) -> Spoil:
    """Change an array of an .npz; None takes it out."""

    def spoil(file: Path) -> None:
        with np.load(file) as opened:
            content = dict(opened)
        array = change(content.pop(name))
        np.savez(file, **content, **({} if array is None else {name: np.asarray(array)}))

    return spoil


def _bomb(file: Path) -> None:
    """The images are 1.5 GB of zeros in 1.5 MB."""
    packer, part, crc = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(1 << 20), 0
    first = packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    data, size = first + again * 1535 + packer.flush(), 1536 << 20
    for _ in range(1536):
        crc = zlib.crc32(part, crc)
    name = b"images.npy"
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(data), size, len(name), 0)
    local = b"PK\x03\x04" + common + name + data
    directory = b"PK\x01\x02\x14\x00" + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(local), 0)
    file.write_bytes(local + directory + b"PK\x05\x06" + end)


ARRAYS: dict[str, Spoil] = {
    "no images": _in_npz("images", lambda array: None),
    "bomb": _bomb,
    "objects": _in_npz("images", lambda array: np.array([_Code()], dtype=object)),
    "texts": _in_npz("images", lambda array: ["a", "b"]),
    "dates": _in_npz("images", lambda array: array.astype("datetime64[s]")),
    "no image": _in_npz("images", lambda array: array[:0]),
    "three dimensions": _in_npz("images", lambda array: array[:, 0]),
    "fraction labels": _in_npz("labels", lambda array: array + 0.5),
    "negative labels": _in_npz("labels", lambda array: array - 1),
    "huge labels": _in_npz("labels", lambda array: array + 2**62),
    "fewer labels": _in_npz("labels", lambda array: array[:-1]),
    "one class": _in_npz("class_names", lambda array: ["a"]),
    "classes of escapes": _in_npz("class_names", lambda array: ["\x1b[31mred", "b\x07", "c\nd"]),
}
