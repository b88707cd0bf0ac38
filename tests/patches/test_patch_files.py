"""Patch files: what they hold, how large they are, and what is refused as damaged or foreign."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

import pecker_fast
from pecker_fast import SaliencyMask, apply_patch, remove_patch, save_patch
from pecker_fast.errors import PeckerError
from pecker_fast.masks.packing import bitmask
from pecker_fast.masks.stats import ParameterStats
from pecker_fast.patches.files import (
    TensorRecord,
    _digest_of_file,
    patch_bytes,
    read_patch,
    write_patch,
)


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
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "pecker_fast.patch" and metadata["version"] == "1"
    assert metadata["package"] == pecker_fast.__version__
    assert json.loads(metadata["about"]) == {
        "name": "no boots",
        "concept": "ankle boot",
        "lr": 1e-6,
    }
    patch = read_patch(file)
    assert (metadata["base"], metadata["result"]) == (patch.base, patch.result)
    assert patch.base != patch.result and metadata["nnz"] == "4"
    assert (patch.nnz, patch.numel, len(patch.tensors)) == (4, 20, 3)
    # 2 + 3 x 4 bytes of "a", 1 + 4 of "b".
    stats = [ParameterStats("a", 10, 3), ParameterStats("b", 6, 1), ParameterStats("c", 4, 0)]
    assert patch_bytes(stats) == 19 and patch_bytes(stats, 2) == 11


def test_what_save_patch_returns_is_what_is_read(tmp_path, file, weights):
    erased = {name: tensor + 1 for name, tensor in weights.items()}
    path = tmp_path / "b.safetensors"
    saved = save_patch(path, weights, erased, SaliencyMask.full(weights))
    read = read_patch(path)
    assert (saved.digest, saved.tensors, saved.path) == (read.digest, read.tensors, read.path)
    assert saved.digest != read_patch(file).digest and saved.base == read_patch(file).base
    # The base of a patch is the result of its inverse.
    inverse = save_patch(path, erased, weights, SaliencyMask.full(weights))
    assert (inverse.base, inverse.result) == (saved.result, saved.base)


def test_the_order_of_names_does_not_change_the_digests(tmp_path, weights, file):
    backwards = dict(reversed(weights.items()))
    apply_patch(backwards, file)
    remove_patch(backwards, file)
    erased = {name: tensor + 1 for name, tensor in weights.items()}
    path = tmp_path / "b.safetensors"
    save_patch(path, backwards, erased, SaliencyMask.full(weights))
    assert read_patch(path).base == read_patch(file).base


# ---- Damaged and foreign files


def refused(path, weights, expected):
    """Reading, applying and removing say `expected` in one line and write nothing."""
    before = {name: tensor.clone() for name, tensor in weights.items()}
    for use in (apply_patch, remove_patch):
        with pytest.raises(PeckerError, match=expected) as error:
            use(weights, path)
        assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())


def test_a_later_version(file, weights):
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), file, metadata={**metadata, "version": "3"})
    refused(file, weights, "has format version '3', this pecker_fast reads version 1 and 2; update")


def test_every_flipped_bit_shows(file, weights):
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


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: {"values": {**patch.values, "a": patch.values["a"][:2]}},
        lambda patch: {"values": {**patch.values, "a": patch.values["a"].astype(np.int16)}},
        lambda patch: {"values": {**patch.values, "a": patch.values["a"].astype(np.float32)}},
        lambda patch: {"values": {**patch.values, "a": patch.values["a"].reshape(3, 1)}},
        lambda patch: {"values": {"a": patch.values["a"]}},
        lambda patch: {"bits": {**patch.bits, "a": bitmask(torch.tensor([0, 8, 9]), 17)}},
        lambda patch: {"bits": {**patch.bits, "a": patch.bits["a"].astype(np.int8)}},
        lambda patch: {"tensors": {n: r for n, r in patch.tensors.items() if n != "a"}},
        lambda patch: {
            "tensors": {**patch.tensors, "a": TensorRecord(torch.Size([10]), "float99", "", "")}
        },
        lambda patch: {"tensors": {}, "bits": {}, "values": {}},
    ],
    ids=[
        "fewer values", "narrow values", "floats", "two dimensions", "positions without values",
        "positions of another size", "signed positions", "no record", "unknown dtype",
        "no tensors",
    ],
)  # fmt: skip
def test_parts_that_contradict_each_other(file, weights, change):
    patch = read_patch(file)
    write_patch(file, replace(patch, **change(patch)))  # its digest is right
    refused(file, weights, "damaged")


def test_a_full_disk_leaves_the_old_file(file, weights, monkeypatch):
    before = file.read_bytes()

    def full(content, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    erased = {name: tensor + 1 for name, tensor in weights.items()}
    with pytest.raises(PeckerError, match=r"cannot write patch file .*No space left"):
        save_patch(file, weights, erased, SaliencyMask.full(weights))
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


# ---- Sizes


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.145), (torch.float16, 0.18)])
def test_size_beside_the_networks_file(tmp_path, dtype, most):
    torch.manual_seed(0)
    base = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
    ).to(dtype)
    base.save_pretrained(tmp_path)
    mask = SaliencyMask.random(base, 0.1, seed=0)
    erased = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    for name, positions in mask.indices.items():
        erased[name].view(-1)[positions.long()] += 1
    path = tmp_path / "patch.safetensors"
    save_patch(path, base, erased, mask)
    size, content = path.stat().st_size, path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    # At density 0.1 gaps take 8 bits a salient entry, bitmasks 10: 1/40 byte less an entry.
    bitmasks = 8 + header + patch_bytes(mask.stats(), dtype.itemsize)
    assert bitmasks - size == pytest.approx(mask.numel / 40, rel=0.1)
    # 1/32 + 1/10 and 1/16 + 1/10; the rest is the header, whose size goes with the tensors' number.
    assert size <= most * (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size
    assert header < 500 * len(mask)
    apply_patch(base, path)
    assert all(torch.equal(p, erased[name]) for name, p in base.named_parameters())


def test_sparse_patches_hold_gaps_and_undo_themselves(tmp_path):
    """And those of the first version, with a bitmask for every tensor, are read as before."""
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(400, 50, generator=generator), "b": torch.randn(3)}
    mask = SaliencyMask.random({"w": base["w"]}, 0.01, seed=0)
    erased = {name: tensor.clone() for name, tensor in base.items()}
    erased["w"].view(-1)[mask.indices["w"].long()] += 1
    path, old = tmp_path / "patch.safetensors", tmp_path / "old.safetensors"
    whole = SaliencyMask(
        {**mask.indices, "b": torch.empty(0, dtype=torch.int32)}, {**mask.shapes, "b": (3,)}
    )
    patch = save_patch(path, base, erased, whole)
    with safe_open(path, framework="np") as file:
        metadata, content = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    assert metadata["version"] == "2" and set(content) == {"gaps.w", "values.w"}
    assert content["gaps.w"].nbytes < 0.1 * 400 * 50 / 8

    del metadata["digest"]
    metadata["version"] = "1"
    before = {"mask.w": patch.bits["w"], "values.w": content["values.w"]}
    metadata["digest"] = _digest_of_file(metadata, before)
    save_numpy(before, old, metadata=metadata)
    for source in (path, old):
        found = read_patch(source)
        assert (found.bits["w"] == patch.bits["w"]).all()
        weights = {name: tensor.clone() for name, tensor in base.items()}
        apply_patch(weights, source)
        assert all(torch.equal(weights[name], erased[name]) for name in base)

    content["gaps.w"] = content["gaps.w"][:-1]
    metadata["version"] = "2"
    del metadata["digest"]
    metadata["digest"] = _digest_of_file(metadata, content)
    save_numpy(content, path, metadata=metadata)
    with pytest.raises(PeckerError, match="damaged"):
        read_patch(path)


def test_size_at_density_01_in_bfloat16(tmp_path):
    """At most 26 bits a salient entry, header and all: 16 of its value, 8.7 of its position."""
    torch.manual_seed(0)
    base = {f"{n}.weight": torch.randn(1024, 1024).bfloat16() for n in range(4)}
    mask = SaliencyMask.random(base, 0.01, seed=1)
    erased = {name: tensor.clone() for name, tensor in base.items()}
    for name, positions in mask.indices.items():
        erased[name].view(-1)[positions.long()] += 1
    save_patch(tmp_path / "patch.safetensors", base, erased, mask)
    bits = 8 * (tmp_path / "patch.safetensors").stat().st_size / mask.nnz
    assert 24 < bits <= 26


def test_size_for_stable_diffusion_1_5():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    numels = {name: parameter.numel() for name, parameter in unet.named_parameters()}
    assert (len(numels), sum(numels.values())) == (686, 859_520_964)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight" in numels

    def share(density, element_size):
        stats = [ParameterStats(n, numel, round(density * numel)) for n, numel in numels.items()]
        return patch_bytes(stats, element_size) / (element_size * sum(numels.values()))

    # Bits of the positions plus entries, 1 / (8 x element size) + density. A bias of 4 entries
    # rounds to none at density 0.1; that and the last byte of the bits are far below 1e-5.
    assert share(0.1, 4) == pytest.approx(1 / 32 + 0.1, abs=1e-5)
    assert share(0.1, 2) == pytest.approx(1 / 16 + 0.1, abs=1e-5)
    assert share(0.01, 4) == pytest.approx(1 / 32 + 0.01, abs=1e-5)

    mask = SaliencyMask.random(unet, 0.01, seed=0, granularity="out_channel")
    mask.check(unet)
    touched = sum((row.numel + 7) // 8 for row in mask.stats() if row.nnz)
    assert patch_bytes(mask.stats()) == touched + 4 * mask.nnz < 0.05 * 4 * mask.numel
    with pytest.raises(PeckerError, match="is on the meta device; load its weights"):
        save_patch("none.safetensors", unet, unet, mask)
