"""Patches in other programs' formats: what they hold, and what rounding takes."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from patch_networks import content
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from pecker_fast import PeckerError, SaliencyMask, save_patch
from pecker_fast.patches.exports import EXPORTS, export_patch


class Attention(nn.Module):
    """Linear layers with and without biases, a convolution, a norm, an embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 16)
        self.norm = nn.LayerNorm(16)
        self.query = nn.Linear(16, 48, bias=False)
        self.out = nn.ModuleList([nn.Linear(48, 16), nn.Dropout(0.0)])
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, tokens):
        hidden = self.norm(self.embed(tokens))
        hidden = hidden + self.out[0](torch.tanh(self.query(hidden)))
        return self.conv(hidden[:, None]).mean(1)


TOKENS = torch.tensor([[0, 3, 5, 6, 2]])


def base_and_erased(dtype=torch.float32, density=0.2, only=None):
    """A network, what training under a mask makes of it, and the mask."""
    torch.manual_seed(0)
    base = Attention().to(dtype)
    dense = SaliencyMask.random(base, density, seed=1).to_dense()
    if only is not None:
        dense = {name: mask & (name in only) for name, mask in dense.items()}
    mask = SaliencyMask.from_dense(dense)
    erased = copy.deepcopy(base)
    with torch.no_grad():
        for name, param in erased.named_parameters():
            where = dense[name]
            param[where] += (0.01 * torch.randn(param.shape)).to(dtype)[where]
    return base, erased, mask


def a_patch(folder, **options):
    base, erased, mask = base_and_erased(**options)
    file = folder / "patch.safetensors"
    save_patch(file, base, erased, mask)
    return file, base, erased, mask


def test_sparse_file_is_what_vllm_takes(tmp_path):
    """SparseWeightPatch: sorted flat int32 indices, values of the parameter's dtype."""
    file, base, erased, mask = a_patch(tmp_path, dtype=torch.bfloat16)
    assert export_patch(file, base, "vllm-sparse", tmp_path / "out.safetensors") == 0
    with safe_open(tmp_path / "out.safetensors", framework="pt") as opened:
        shapes = json.loads(opened.metadata()["shapes"])
        for name, shape in shapes.items():
            param = base.get_parameter(name)
            indices, values = (opened.get_tensor(f"{k}.{name}") for k in ("indices", "values"))
            assert torch.equal(indices, mask.indices[name])
            assert (list(param.shape), param.dtype) == (shape, values.dtype)
            param.data.view(-1).index_copy_(0, indices.long(), values)
    assert content(base) == content(erased)


def test_nan_is_not_for_vllm(tmp_path):
    base, erased, mask = base_and_erased()
    erased.query.weight.data.view(-1)[mask.indices["query.weight"][0]] = math.nan
    save_patch(tmp_path / "patch.safetensors", base, erased, mask)
    with pytest.raises(PeckerError, match=r"query\.weight.*NaN"):
        export_patch(tmp_path / "patch.safetensors", base, "vllm-sparse", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shira_layout(tmp_path):
    """One rank for all layers; what is no lone linear weight is whole."""
    file, base, erased, mask = a_patch(tmp_path, density=0.5)
    export_patch(file, base, "peft-shira", tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    rows, columns = tensors["base_model.model.query.shira_indices"]
    assert len(rows) == config["r"] * (16 + 48)
    assert config["modules_to_save"] == ["conv", "embed", "norm", "out.0"]
    assert torch.equal(tensors["base_model.model.out.0.weight"], erased.out[0].weight)
    flat = rows * 16 + columns
    nnz = len(mask.indices["query.weight"])
    assert torch.equal(flat[:nnz], mask.indices["query.weight"])
    assert (flat[nnz:] == flat[nnz - 1]).all()
    assert not tensors["base_model.model.query.shira_weight"][nnz:].any()


def test_shira_says_what_rounding_took(tmp_path):
    """1e-9 is not 1 plus a float32."""
    base, erased, mask = base_and_erased(only=("query.weight",))
    where = mask.indices["query.weight"][:2].long()
    base.query.weight.data.view(-1)[where] = 1.0
    erased.query.weight.data.view(-1)[where] = 1e-9
    save_patch(tmp_path / "patch.safetensors", base, erased, mask)
    assert export_patch(tmp_path / "patch.safetensors", base, "peft-shira", tmp_path / "out") >= 2


def test_a_base_that_is_not_the_patchs_is_refused(tmp_path):
    file, base, erased, _ = a_patch(tmp_path)
    for kind in EXPORTS:
        with pytest.raises(PeckerError, match=r"carries the patch .* already"):
            export_patch(file, erased, kind, tmp_path / "out")
    with pytest.raises(PeckerError, match="Module"):
        export_patch(file, base.state_dict(), "peft-shira", tmp_path / "out")
    with pytest.raises(PeckerError, match="one of peft-shira"):
        export_patch(file, base, "ia3", tmp_path / "out")


class Tied(nn.Module):
    """A linear layer under two names, and a parameter in no layer."""

    def __init__(self):
        super().__init__()
        self.head = self.tail = nn.Linear(8, 8, bias=False)
        self.scale = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("name", ["head.weight", "scale"])
def test_what_peft_has_no_place_for(name, tmp_path):
    base = Tied()
    erased = copy.deepcopy(base)
    with torch.no_grad():
        erased.get_parameter(name).view(-1)[0] += 1
    dense = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in base.named_parameters()}
    dense[name].view(-1)[0] = True
    save_patch(tmp_path / "patch.safetensors", base, erased, SaliencyMask.from_dense(dense))
    with pytest.raises(PeckerError, match=f"no place for '{name}'"):
        export_patch(tmp_path / "patch.safetensors", base, "peft-shira", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_loads_a_shira_export_and_gives_the_same_outputs(dtype, tmp_path):
    peft = pytest.importorskip("peft")
    only = ("query.weight", "norm.weight", "embed.weight")
    file, base, erased, _ = a_patch(tmp_path, dtype=dtype, only=only)
    inexact = export_patch(file, base, "peft-shira", tmp_path / "out")
    expected = erased(TOKENS)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    weight = erased.query.weight
    found = loaded.base_model.model.query.get_delta_weight("default").to_dense()
    found = (loaded.base_model.model.query.get_base_layer().weight + found).to(dtype)
    assert int((found != weight).sum()) == inexact
    if inexact == 0:
        assert torch.equal(loaded(TOKENS), expected)
    else:  # sums of 48 products, each weight off by a unit in the last place at most
        torch.testing.assert_close(loaded(TOKENS), expected, rtol=1e-5, atol=1e-6)
