"""Patch files: what they hold, how large they are, and what is refused as damaged or foreign."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file

import pecker_fast
from pecker_fast import SaliencyMask, apply_patch, remove_patch, save_patch
from pecker_fast.errors import PeckerError
from pecker_fast.masks.packing import bitmask
from pecker_fast.patches.files import TensorRecord, _digest_of_file, read_patch, write_patch


@pytest.fixture
def weights():
    return {"a": torch.arange(10.0), "b": torch.ones(3, 2), "c": torch.zeros(4)}


@pytest.fixture
def file(tmp_path, weights):
    """A patch that changes three entries of "a" and one of "b"."""
    indices = {"a": [0, 8, 9], "b": [4], "c": []}
    mask = SaliencyMask(
        {name: torch.tensor(positions, dtype=torch.int32) for name, positions in indices.items()},
        {name: tensor.shape for name, tensor in weights.items()},
    )
    erased = {name: tensor.clone() for name, tensor in weights.items()}
    erased["a"][[0, 8, 9]] = torch.tensor([2.0, -0.0, 9.0])
    erased["b"][2, 0] = -1
    path = tmp_path / "a.safetensors"
    save_patch(path, weights, erased, mask, name="no boots", concept="ankle boot", lr=1e-6)
    return path


def metadata_of(file):
    with safe_open(file, framework="np") as opened:
        return opened.metadata()


def rewrite(file, content, **metadata):
    """Write content and metadata with a digest that is right."""
    metadata.pop("digest", None)
    metadata["digest"] = _digest_of_file(metadata, content)
    save_numpy(content, file, metadata=metadata)


# ---- What is in the file


def test_the_file_holds_bits_and_differences_of_salient_tensors_only(file):
    content = load_file(file)
    assert sorted(content) == ["mask.a", "mask.b", "values.a", "values.b"]
    assert content["mask.a"].tolist() == [0b00000001, 0b00000011]
    assert content["mask.b"].tolist() == [0b00010000]
    # 0.0 is 0, 2.0 is 0x40000000; 8.0 is 0x41000000, -0.0 is 0x80000000; 9.0 did not move.
    as_integers = [0x40000000, 0x41000000 - 0x80000000, 0]
    assert content["values.a"].tolist() == as_integers
    assert content["values.a"].dtype == torch.int32
    metadata = metadata_of(file)
    assert metadata["format"] == "pecker_fast.patch" and metadata["version"] == "1"
    assert metadata["package"] == pecker_fast.__version__
    said = {"name": "no boots", "concept": "ankle boot", "lr": 1e-6}
    assert json.loads(metadata["about"]) == said
    patch = read_patch(file)
    assert (metadata["base"], metadata["result"]) == (patch.base, patch.result)
    assert patch.base != patch.result and metadata["nnz"] == "4"
    assert (patch.nnz, patch.numel, len(patch.tensors)) == (4, 20, 3)


def test_what_save_patch_returns_is_what_is_read(tmp_path, file, weights):
    backwards = dict(reversed(weights.items()))  # the order of names does not count
    erased = {name: tensor + 1 for name, tensor in weights.items()}
    path = tmp_path / "b.safetensors"
    saved = save_patch(path, backwards, erased, SaliencyMask.full(weights))
    read = read_patch(path)
    assert (saved.digest, saved.tensors, saved.path) == (read.digest, read.tensors, read.path)
    assert saved.digest != read_patch(file).digest and saved.base == read_patch(file).base
    # The base of a patch is the result of its inverse.
    inverse = save_patch(path, erased, weights, SaliencyMask.full(weights))
    assert (inverse.base, inverse.result) == (saved.result, saved.base)


# ---- Damaged and foreign files


def refused(path, weights, expected):
    """Applying and removing say `expected` in one line and write nothing."""
    before = {name: tensor.clone() for name, tensor in weights.items()}
    for use in (apply_patch, remove_patch):
        with pytest.raises(PeckerError, match=expected) as error:
            use(weights, path)
        assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())


def test_a_later_version(file, weights):
    content = {name: tensor.numpy() for name, tensor in load_file(file).items()}
    rewrite(file, content, **{**metadata_of(file), "version": "3"})
    refused(file, weights, "version '3'")


def test_every_flipped_bit_shows(file):
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == 19
    # All of the data, and a sample of the header, where most flips are no JSON any more.
    for place in [*range(header, len(content)), *range(8, header, 5)]:
        for bit in (0, 5, 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(PeckerError, match=r"damaged|not a pecker_fast patch|version"):
                read_patch(file)


def contradictions(content):
    """Name -> what the file holds instead, each against the rest of it."""
    a, bits = content["values.a"], content["mask.a"]
    return {
        "fewer values": {"values.a": a[:2]},
        "narrow values": {"values.a": a.astype(np.int16)},
        "floats": {"values.a": a.astype(np.float32)},
        "two dimensions": {"values.a": a.reshape(3, 1)},
        "positions of another size": {"mask.a": bitmask(torch.tensor([0, 8, 9]), 17)},
        "signed positions": {"mask.a": bits.astype(np.int8)},
        "positions without values": {"values.a": None},
        "values without positions": {"mask.a": None},
        "of no tensor": {"mask.z": bits, "values.z": a},
        "nothing": dict.fromkeys(content),
    }


def test_parts_that_contradict_each_other(file, weights):
    content = {name: tensor.numpy() for name, tensor in load_file(file).items()}
    metadata = metadata_of(file)
    for changes in contradictions(content).values():
        changed = {k: v for k, v in (content | changes).items() if v is not None}
        rewrite(file, changed, **metadata)
        refused(file, weights, "damaged")


def test_a_record_of_an_unknown_dtype(file, weights):
    patch = read_patch(file)
    record = TensorRecord(torch.Size([10]), "float99", "", "")
    write_patch(file, replace(patch, tensors={**patch.tensors, "a": record}))
    refused(file, weights, "damaged")


def test_a_full_disk_leaves_the_old_file(file, weights, monkeypatch):
    before = file.read_bytes()

    def full(content, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    erased = {name: tensor + 1 for name, tensor in weights.items()}
    with pytest.raises(PeckerError, match="No space left"):
        save_patch(file, weights, erased, SaliencyMask.full(weights))
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


# ---- Sizes


@pytest.mark.parametrize(
    ("dtype", "density", "least", "most"),
    # Bits a salient entry, header and all: of its value, and of its position as packed.
    [(torch.float32, 0.1, 40, 41), (torch.float16, 0.1, 24, 25), (torch.bfloat16, 0.01, 24, 26)],
)
def test_sizes(tmp_path, dtype, density, least, most):
    torch.manual_seed(0)
    base = {f"{n}.weight": torch.randn(1024, 1024).to(dtype) for n in range(4)}
    mask = SaliencyMask.random(base, density, seed=1)
    erased = {name: tensor.clone() for name, tensor in base.items()}
    for name, positions in mask.indices.items():
        erased[name].view(-1)[positions.long()] += 1
    save_patch(tmp_path / "patch.safetensors", base, erased, mask)
    bits = 8 * (tmp_path / "patch.safetensors").stat().st_size / mask.nnz
    assert least < bits <= most


def test_sparse_patches_hold_gaps_and_undo_themselves(tmp_path):
    """And those of the first version, with a bitmask for every tensor, are read as before."""
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(400, 50, generator=generator), "b": torch.randn(3)}
    mask = SaliencyMask.random({"w": base["w"]}, 0.01, seed=0)
    erased = {name: tensor.clone() for name, tensor in base.items()}
    erased["w"].view(-1)[mask.indices["w"].long()] += 1
    path, old = tmp_path / "patch.safetensors", tmp_path / "old.safetensors"
    save_patch(path, base, erased, mask)
    with safe_open(path, framework="np") as file:
        metadata, content = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    assert metadata["version"] == "2" and set(content) == {"gaps.w", "values.w"}
    assert content["gaps.w"].nbytes < 0.1 * 400 * 50 / 8
    bits = bitmask(mask.indices["w"], 400 * 50)
    rewrite(old, {"mask.w": bits, "values.w": content["values.w"]}, **{**metadata, "version": "1"})
    for source in (path, old):
        assert torch.equal(read_patch(source).positions["w"], mask.indices["w"])
        weights = {name: tensor.clone() for name, tensor in base.items()}
        apply_patch(weights, source)
        assert all(torch.equal(weights[name], erased[name]) for name in base)
    rewrite(path, {**content, "gaps.w": content["gaps.w"][:-1]}, **metadata)
    with pytest.raises(PeckerError, match="damaged"):
        read_patch(path)
