"""Masks in files: SalUn's dictionaries in, our bitmasks out and in."""

from __future__ import annotations

import json
import os
import pickle
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.masks.files import saved_by_torch
from pecker_fast.masks.mask import SaliencyMask


def selected(mask):
    return {name: positions.tolist() for name, positions in mask.indices.items()}


# ---- from_dense


def dense_of(mask, dtype=torch.int64, prefix=""):
    return {prefix + name: dense.to(dtype) for name, dense in mask.to_dense().items()}


def test_from_dense_reads_channels_last_in_logical_order():
    dense = torch.zeros(2, 3, 2, 2, dtype=torch.int64)
    dense[1, 2, 0, 1] = 1
    dense = dense.to(memory_format=torch.channels_last)
    assert selected(SaliencyMask.from_dense({"a": dense})) == {"a": [21]}


@pytest.mark.parametrize(
    ("in_file", "in_model"),
    [
        ("", ""),
        ("module.", ""),
        ("", "module."),
        ("model.diffusion_model.", ""),
        ("", "model.diffusion_model."),
        ("module.model.diffusion_model.", ""),
        ("module.", "model.diffusion_model."),
    ],
)
def test_salun_file_with_prefixes(tmp_path, model, mask, in_file, in_model):
    path = tmp_path / "with_0.5.pt"
    torch.save(dense_of(mask, prefix=in_file), path)
    parameters = {in_model + name: param for name, param in model.named_parameters()}
    loaded = SaliencyMask.from_dense(path, parameters)
    assert list(loaded) == list(parameters)
    assert selected(loaded) == {in_model + name: p for name, p in selected(mask).items()}


def test_from_dense_follows_the_models_order(model, mask):
    dense = dict(reversed(dense_of(mask).items()))
    assert list(SaliencyMask.from_dense(dense, model)) == list(mask)


def test_from_dense_refuses_names_it_cannot_match(model, mask):
    dense = dense_of(mask)
    wrong = {f"net.{name}": tensor for name, tensor in dense.items()}
    with pytest.raises(PeckerError, match=r"7 names .*'net\.0\.weight'.*and 4 more.*'0\.weight'"):
        SaliencyMask.from_dense(wrong, model)
    del dense["1.bias"]
    with pytest.raises(PeckerError, match=r"the mask has no '1\.bias'"):
        SaliencyMask.from_dense(dense, model)


def test_from_dense_refuses_ambiguous_names(model, mask):
    dense = dense_of(mask)
    dense["module.0.weight"] = dense["0.weight"]
    with pytest.raises(PeckerError, match=r"both match the model's '0\.weight'"):
        SaliencyMask.from_dense(dense, model)
    twice = {"module.a": torch.ones(2), "a": torch.ones(2)}
    with pytest.raises(PeckerError, match=r"differ by a prefix only; pass prefixes=\(\)"):
        SaliencyMask.from_dense(twice, twice)
    assert len(SaliencyMask.from_dense(twice, twice, prefixes=())) == 2


def test_from_dense_refuses_other_shapes(model, mask):
    dense = dense_of(mask)
    dense["3.weight"] = dense["3.weight"].T
    with pytest.raises(PeckerError, match=r"has shape \(5, 7\) in the mask and \(7, 5\) in"):
        SaliencyMask.from_dense(dense, model)


class Boom:
    """Its unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_unreadable_salun_files(tmp_path, mask):
    with pytest.raises(PeckerError, match=r"missing\.pt' does not exist"):
        SaliencyMask.from_dense(tmp_path / "missing.pt")
    with pytest.raises(PeckerError, match="does not exist"):
        SaliencyMask.from_dense(tmp_path)

    path = tmp_path / "mask.pt"
    torch.save(dense_of(mask), path)
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:100], b"hello", content[50:]):
        path.write_bytes(damaged)
        with pytest.raises(PeckerError, match="cannot be read: it is damaged, or not a dictionary"):
            SaliencyMask.from_dense(path)
    path.write_bytes(pickle.dumps(Boom(str(tmp_path / "made")), protocol=2))
    with pytest.raises(PeckerError, match="cannot be read"):
        SaliencyMask.from_dense(path)
    torch.save({"a": Boom(str(tmp_path / "made"))}, path)
    with pytest.raises(PeckerError, match="cannot be read"):
        SaliencyMask.from_dense(path)
    assert not (tmp_path / "made").exists()

    torch.save(torch.ones(3), path)
    with pytest.raises(PeckerError, match="holds a Tensor; expected a dictionary"):
        SaliencyMask.from_dense(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(PeckerError, match="holds int under 'epoch'; expected a dictionary"):
        SaliencyMask.from_dense(path)


def test_which_files_torch_saved(tmp_path, mask):
    path = tmp_path / "mask"
    torch.save(dense_of(mask), path)
    assert saved_by_torch(path)
    torch.save(dense_of(mask), path, _use_new_zipfile_serialization=False)
    assert saved_by_torch(path) and SaliencyMask.from_dense(path) == mask
    mask.save(path)
    assert not saved_by_torch(path)
    path.write_bytes(b"")
    assert not saved_by_torch(path)
    assert not saved_by_torch(tmp_path) and not saved_by_torch(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    assert not saved_by_torch(tmp_path / "pipe")
    with pytest.raises(PeckerError, match="pipe"):
        SaliencyMask.load(tmp_path / "pipe")


# ---- save and load


def test_save_and_load(tmp_path, model, scores):
    for granularity in ("element", "out_channel", "block", "tensor"):
        mask = SaliencyMask.from_scores(scores, 0.3, granularity=granularity, block_size=7)
        path = tmp_path / f"{granularity}.safetensors"
        mask.save(path)
        loaded = SaliencyMask.load(path, model)
        assert loaded == mask
        assert loaded.digest == mask.digest
        assert list(loaded) == list(mask)
        assert loaded.shapes == mask.shapes
        assert (loaded.granularity, loaded.block_size) == (granularity, 7)
        assert all(positions.dtype == torch.int32 for positions in loaded.indices.values())


def test_the_file_is_a_bitmask_others_can_read(tmp_path, mask):
    path = tmp_path / "mask.safetensors"
    mask.save(str(path))
    tensors = load_file(path)
    for name, dense in mask.to_dense().items():
        bits = tensors[name]
        assert bits.dtype == torch.uint8
        assert bits.numel() == -(-dense.numel() // 8)
        entries = range(dense.numel())
        assert dense.flatten().tolist() == [bool(bits[i // 8] >> (i % 8) & 1) for i in entries]
    metadata = header(path)["__metadata__"]
    assert (metadata["format"], metadata["version"]) == ("pecker_fast.mask", "1")
    assert metadata["digest"] == mask.digest
    assert float(metadata["density"]) == mask.density
    assert json.loads(metadata["shapes"])[0] == ["0.weight", [8, 3, 3, 3]]


def header(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_load_checks_the_model(tmp_path, mask, model):
    mask.save(tmp_path / "mask")
    other = nn.Sequential(*list(model)[:3])
    with pytest.raises(PeckerError, match=r"the model has no '3\.weight', '3\.bias'"):
        SaliencyMask.load(tmp_path / "mask", other)


def test_a_changed_bit_is_noticed(tmp_path, mask):
    path = tmp_path / "mask"
    mask.save(path)
    content = bytearray(path.read_bytes())
    for offset in (-1, -20):
        content[offset] ^= 4
        path.write_bytes(content)
        with pytest.raises(PeckerError, match="damaged: its content does not match its digest"):
            SaliencyMask.load(path)
        content[offset] ^= 4


def test_foreign_and_newer_files(tmp_path, mask):
    path = tmp_path / "mask"
    with pytest.raises(PeckerError, match="does not exist"):
        SaliencyMask.load(path)
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(PeckerError, match="not a pecker_fast mask"):
        SaliencyMask.load(path)
    save_file({"a": torch.ones(1)}, path, metadata={"format": "pecker_fast.mask", "version": "9"})
    with pytest.raises(PeckerError, match="has format version '9', this pecker_fast reads"):
        SaliencyMask.load(path)
    save_file({"a": torch.ones(1)}, path, metadata={"format": "pecker_fast.mask", "version": "1"})
    with pytest.raises(PeckerError, match="cannot be read"):
        SaliencyMask.load(path)
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(PeckerError, match="cannot be read"):
        SaliencyMask.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, mask, monkeypatch):
    path = tmp_path / "mask"
    mask.save(path)
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        args[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    with pytest.raises(PeckerError, match=r"cannot write mask file .*No space left on device"):
        (~mask).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["mask"]


def test_saving_where_one_cannot(tmp_path, mask):
    with pytest.raises(PeckerError, match="cannot write mask file"):
        mask.save(tmp_path / "no" / "such" / "folder")
    with pytest.raises(PeckerError, match=f"{tmp_path}: is a folder"):
        mask.save(tmp_path)
    if os.geteuid() != 0:
        os.chmod(tmp_path, stat.S_IREAD | stat.S_IEXEC)
        with pytest.raises(PeckerError, match="cannot write mask file"):
            mask.save(tmp_path / "mask")
        os.chmod(tmp_path, stat.S_IRWXU)
