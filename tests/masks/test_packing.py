"""Positions in few bytes, in both encodings, and mask files of both versions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pecker_fast.errors import PeckerError
from pecker_fast.masks import packing
from pecker_fast.masks.mask import SaliencyMask

WIDTHS = (np.uint8, np.uint16)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 200_000), max_size=30), st.integers(0, 70_000))
def test_gaps_give_back_the_positions(chosen, extra):
    """Gaps of exactly the largest symbol, of several of them, and none at all."""
    chosen |= {extra, extra + 255, extra + 256, extra + 256 + 65_536}
    positions = torch.tensor(sorted(chosen), dtype=torch.int32)
    for kind in WIDTHS:
        symbols = packing.gaps(positions, kind)
        assert symbols.dtype == kind
        assert torch.equal(packing.positions_of_gaps(symbols, 400_000), positions)
        with pytest.raises(ValueError, match="position"):
            packing.positions_of_gaps(symbols, int(positions[-1]))
    empty = torch.empty(0, dtype=torch.int32)
    assert packing.gaps(empty, np.uint8).size == 0
    assert torch.equal(packing.positions_of_gaps(np.empty(0, np.uint8), 5), empty)


def test_gaps_that_mean_nothing():
    for symbols in (np.array([3, 255], np.uint8), np.array([[1]], np.uint8), np.array([1])):
        with pytest.raises(ValueError):
            packing.positions_of_gaps(symbols, 1000)


@pytest.mark.parametrize(
    ("density", "dtype", "bits"),
    [(0.3, None, 1 / 0.3), (0.1, np.uint8, 8.0), (0.01, np.uint8, 8.7), (0.0005, np.uint16, 16.0)],
)
def test_the_smallest_encoding_is_taken(density, dtype, bits):
    """At random positions: bits for each salient entry as the module's table has them."""
    numel = 2_000_000
    chosen = torch.rand(numel, generator=torch.Generator().manual_seed(0)) < density
    positions = chosen.nonzero().flatten().int()
    packed = packing.smallest(positions, numel)
    assert (None if packed is None else packed.dtype) == dtype
    size = (numel + 7) // 8 if packed is None else packed.nbytes
    assert 8 * size / len(positions) == pytest.approx(bits, rel=0.01)


def sparse_mask():
    generator = torch.Generator().manual_seed(0)
    scores = {"w": torch.rand(300, 40, generator=generator), "b": torch.rand(3)}
    return SaliencyMask.from_scores(scores, {"w": 0.01, "b": 0.5})


def metadata_of(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def test_a_sparse_mask_is_a_small_file_with_the_digest_of_its_entries(tmp_path):
    mask = sparse_mask()
    path = tmp_path / "mask.safetensors"
    mask.save(path)
    about = metadata_of(path)
    assert (about["format"], about["version"]) == ("pecker_fast.mask", "2")
    assert json.loads(about["gaps"]) == ["w"]
    content = load_file(path)
    assert content["w"].nbytes < 150 < 300 * 40 / 8
    assert content["b"].nbytes == 1
    loaded = SaliencyMask.load(path)
    assert loaded == mask
    assert loaded.digest == mask.digest == about["digest"]


def test_files_of_the_first_version_load(tmp_path):
    mask = sparse_mask()
    path, old = tmp_path / "mask.safetensors", tmp_path / "old.safetensors"
    mask.save(path)
    about = metadata_of(path)
    del about["gaps"]
    bits = {n: packing.bitmask(p, mask.shapes[n].numel()) for n, p in mask.indices.items()}
    save_file(bits, old, metadata={**about, "version": "1"})
    assert SaliencyMask.load(old) == mask


def test_a_dense_mask_is_a_file_of_the_first_version(tmp_path):
    """Which every pecker_fast reads."""
    path = tmp_path / "mask.safetensors"
    SaliencyMask.full({"w": torch.zeros(50)}).save(path)
    assert metadata_of(path)["version"] == "1"


@pytest.mark.parametrize("spoil", ["symbol", "width", "list", "length", "shape"])
def test_damaged_gaps_are_refused(tmp_path, spoil):
    path = tmp_path / "mask.safetensors"
    sparse_mask().save(path)
    about, content = metadata_of(path), load_file(path)
    if spoil == "symbol":
        content["w"][5] ^= 1
    elif spoil == "width":
        content["w"] = content["w"].astype(np.int64)
    elif spoil == "list":
        about["gaps"] = "7"
    elif spoil == "length":
        content["w"] = content["w"][:-1]
    else:
        about["shapes"] = about["shapes"].replace("[300, 40]", "[300000000, 4000]")
    save_file(content, path, metadata=about)
    with pytest.raises(PeckerError, match="damaged"):
        SaliencyMask.load(path)
