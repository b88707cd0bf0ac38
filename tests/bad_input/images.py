"""Images: folders, archives, data sets, and what samples.json says of them."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from bad_input.building import case, each, keys, whole_json
from bad_input.spoil import ANY_FILE, ARRAYS, bomb, in_npz
from PIL import Image

_FOLDER = ("evaluate", "--images", "folders", "--classifier", "classifier", "--forget", "star",
           "--json", "found.json")  # fmt: skip
_ARCHIVE = (*_FOLDER[:2], "real.npz", *_FOLDER[3:])
_SAMPLES = (*_FOLDER[:2], "samples", *_FOLDER[3:])
_FASHION = ("train-classifier", "--arch", "small", "--dataset", "fashion-mnist", "--data-root",
            "fashion", "--out", "run", "--iterations", "1", "--set", "batch_size=2")  # fmt: skip
_CIFAR = ("train-classifier", "--arch", "small", "--dataset", "cifar10", "--data-root",
          "cifar", "--out", "run", "--iterations", "1")  # fmt: skip
_AGAIN = ("sample", "model", "--out", "samples", "--steps", "1", "--per-class", "2")
_PNG = "folders/circle/0.png"


def _saved(image: Image.Image, file: Path) -> None:
    image.save(file, "PNG")


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def _png(
    width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = zlib.compress(bytes(99))
) -> Callable[[Path], object]:
    """A PNG file that says that it is so large, whatever is in it."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    content = header + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def _text_chunk(file: Path) -> None:
    """A text of 1 GB in a PNG file."""
    content = file.read_bytes()
    chunk = _chunk(b"zTXt", b"x\0\0" + bomb(1024, wbits=15))
    file.write_bytes(content[:33] + chunk + content[33:])


def _wide(file: Path) -> None:
    """An image of 400 MP in 400 kB."""
    _png(20_000, 20_000, data=bomb(400, wbits=15))(file)


PICTURES: dict[str, Callable[[Path], object]] = {
    "16 bits": lambda f: _saved(Image.fromarray(np.zeros((8, 8), np.uint16)), f),
    "floats": lambda f: Image.fromarray(np.zeros((8, 8), np.float32)).save(f, "TIFF"),
    "another size": lambda f: _saved(Image.new("L", (9, 8)), f),
    "one pixel": lambda f: _saved(Image.new("L", (1, 1)), f),
    "a bomb": _png(60_000, 60_000),
    "a small bomb": _png(12_000, 12_000),
    "a wide one": _wide,
    "a text bomb": _text_chunk,
    "no width": _png(0, 8),
    "unknown colours": _png(8, 8, 8, 5),
    "a BMP": lambda f: Image.new("L", (9, 9)).save(f, "BMP"),
    "an SVG": lambda f: f.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "a PostScript": lambda f: f.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
}

IDX = {
    "5 bytes": gzip.compress(b"\0\0\x08\x03\0"),
    "27 pixels": gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 1, 28, 28) + bytes(27)),
    "nothing": gzip.compress(b""),
    "another type": gzip.compress(b"\0\0\x0d\x03" + struct.pack(">III", 1, 28, 28) + bytes(3136)),
    "count too large": gzip.compress(
        b"\0\0\x08\x03" + struct.pack(">III", 2**31, 28, 28) + bytes(784)
    ),
    "no items": gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 0, 28, 28)),
    "another size": gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 20, 14, 56) + bytes(15680)),
    "not the header's": gzip.compress(b"junk" + struct.pack(">III", 20, 28, 28) + bytes(15680)),
    "not packed": b"\0\0\x08\x03" + struct.pack(">III", 1, 28, 28) + bytes(784),
    "bomb": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bomb(3072) + struct.pack("<II", 0, 0),
    "junk behind": gzip.compress(bytes(16)) + b"junk",
}  # fmt: skip
LABELS = {
    "fewer": gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 10) + bytes(10)),
    "out of range": gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 20) + bytes([200]) * 20),
    "nothing": gzip.compress(b""),
    "7 bytes": gzip.compress(b"\0\0\x08\x01\0\0\0"),
    "images": gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 20, 28, 28) + bytes(15680)),
}


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


def _both(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder / "folders/beside.png")


def _deeper(folder: Path) -> None:
    (folder / "folders/circle/inner").mkdir()
    Image.new("L", (8, 8)).save(folder / "folders/circle/inner/0.png")


def _colour(folder: Path) -> None:
    for file in (folder / "folders").rglob("*.png"):
        Image.open(file).convert("RGB").save(file)


def _rename(new: str, folder: Path) -> None:
    os.rename(folder / "folders/circle", folder / "folders" / new)


def _samples(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "samples/samples.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _circle(folder: Path) -> None:
    (folder / "folders/circle/again").symlink_to("..")


_NEEDS = ("folders", "classifier")
_WITH_SAMPLES = ("samples", "classifier")
_KEYS = {
    "class_names": "missing null text negative list object nested deep",
    "folders": "missing null text list zero object",
    "folders.00_circle": "null text list object",
    "folders.00_circle.index": "missing null text negative huge fraction list true",
}
_RESUMED = {
    "folders": "missing null text list zero", "sampler": "missing null text list zero object",
    "starts": "missing null text zero object", "model": "missing null text list",
    "complete": "missing text list", "class_names": "null text",
}  # fmt: skip

CASES = [
    *each("archive", ANY_FILE | ARRAYS, "real.npz", _ARCHIVE, ("real.npz", "classifier"),
          named="real.npz"),
    *each(
        "names", {
            "few": in_npz(class_names=["a"]),
            "twice": in_npz(class_names=["a", "a", "a"]),
            "numbers": in_npz(class_names=[1, 2, 3]),
            "escape": in_npz(class_names=["\x1b[31mred", "b\x07", "c\nd"]),
            "one word": in_npz(class_names="abc"),
            "nested": in_npz(class_names=[["a", "b", "c"]]),
            "empty": in_npz(class_names=["", "", ""]),
            "long": in_npz(class_names=["x" * 100_000, "b", "c"]),
        },
        "real.npz", _ARCHIVE, ("real.npz", "classifier"),
    ),
    *each("picture", ANY_FILE | PICTURES, _PNG, _FOLDER, _NEEDS, named="circle",
          fine=("gone", "folder", "dangling", "loop", "device", "fifo")),  # no file, no image
    *each("idx images", ANY_FILE | {n: _write(c) for n, c in IDX.items()},
          "fashion/train-images-idx3-ubyte.gz", _FASHION, ("fashion",), named="train-images"),
    *each("idx labels", {n: _write(c) for n, c in LABELS.items()},
          "fashion/train-labels-idx1-ubyte.gz", _FASHION, ("fashion",)),
    *each("batch", ANY_FILE, "cifar/cifar-10-batches-py/data_batch_1", _CIFAR, ("cifar",),
          named="data_batch_1"),
    *each("meta", ANY_FILE, "cifar/cifar-10-batches-py/batches.meta", _CIFAR, ("cifar",)),
    case("batches that are not the published ones", _CIFAR, ("cifar",), named="data_batch_1"),
    case("CIFAR's own folder", (*_CIFAR[:6], "cifar/cifar-10-batches-py", *_CIFAR[7:]),
         ("cifar",), named="parent"),
    case("data nowhere", (*_CIFAR[:6], "nowhere", *_CIFAR[7:]), named="nowhere"),
    case("data in a file", (*_CIFAR[:6], "precious.txt", *_CIFAR[7:]), named="precious.txt"),
    case("STL-10 where CIFAR lies", (*_CIFAR[:4], "stl10", *_CIFAR[5:]), ("cifar",),
         named="stl10_binary"),
    case("no folder of data", ("train-classifier", "--dataset", "cifar10", "--out", "run"),
         named="--data-root"),
    case("images beside folders", _FOLDER, _NEEDS, _both, named="folders"),
    case("images too deep", _FOLDER, _NEEDS, _deeper, named="inner"),
    case("colour for a grey classifier", _FOLDER, _NEEDS, _colour, named="classifier"),
    case("a folder that links to itself", _FOLDER, _NEEDS, _circle, code=(0, 2)),
    case("an empty folder", (*_FOLDER[:2], "void", *_FOLDER[3:]), _NEEDS,
         lambda folder: (folder / "void").mkdir(), named="void"),
    case("nowhere", (*_FOLDER[:2], "nowhere", *_FOLDER[3:]), _NEEDS, named="nowhere"),
    case("a text", (*_FOLDER[:2], "precious.txt", *_FOLDER[3:]), _NEEDS, named="precious.txt"),
    case("a class called escape", _FOLDER, _NEEDS, partial(_rename, "\x1b[31mred"), code=(0, 2)),
    case("a class that is no UTF-8", _FOLDER, _NEEDS, partial(_rename, "x\udcff"), code=(0, 2)),
    case("a class called a formula", _FOLDER, _NEEDS, partial(_rename, "=SUM(1)"), code=0),
    *keys("samples", "samples/samples.json", _KEYS, _SAMPLES, _WITH_SAMPLES, named="samples"),
    *keys("samples that go on", "samples/samples.json", _RESUMED, _AGAIN, ("model", "samples"),
          named="samples"),
    *whole_json("samples", "samples/samples.json", _SAMPLES, _WITH_SAMPLES, named="samples"),
    *(case(f"samples with {name}", _SAMPLES, _WITH_SAMPLES, _samples(folders=folders))
      for name, folders in {
          "numbers": [1, 2, 3], "a number": 3, "names": {"circle": 1}, "nothing": {},
          "above": {"../folders": {"index": 0}}, "absolute": {"/etc": {"index": 0}},
          "one folder": {"00_circle": {"index": 0}},
      }.items()),
    *(case(f"going on with samples of {name}",
           (*_AGAIN, *more),
           ("model", "samples"), change, named="samples")
      for name, change, more in (
          ("another seed", None, ("--seed", "1")),
          ("another guidance", None, ("--sampler", "ddim", "--steps", "2", "--guidance", "0.5")),
      )),
]  # fmt: skip
