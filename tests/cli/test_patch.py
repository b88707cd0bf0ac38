"""`pecker-fast patch`: model folders in, model folders out, bit for bit."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from pecker_fast import SaliencyMask, cli, save_patch
from pecker_fast.patches import folders
from pecker_fast.patches.files import read_patch


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline folder with a U-Net, and two patches of it that have entries in common."""
    root = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    base = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
    )
    base.save_pretrained(root / "pipe" / "unet")
    (root / "pipe" / "model_index.json").write_text("{}")
    (root / "pipe" / "vae").mkdir()
    (root / "pipe" / "vae" / "weights.safetensors").write_bytes(b"of the autoencoder")
    for seed, name in enumerate("ab"):
        mask = SaliencyMask.random(base, 0.1, seed)
        erased = {n: p.detach().clone() for n, p in base.named_parameters()}
        for parameter, positions in mask.indices.items():
            erased[parameter].view(-1)[positions.long()] += 1 + seed
        save_patch(root / f"{name}.safetensors", base, erased, mask, concept=f"concept {name}")
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy that the test may change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(*arguments):
    return cli.main(["patch", *map(str, arguments)])


def files_in(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "frozen.json"  # the proof, beside the model
    }


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_shards_stay_shards(root):
    pipe, a = root / "pipe", root / "a.safetensors"
    network = UNet2DConditionModel.from_pretrained(pipe / "unet")
    assert run("apply", pipe, a, "--out", root / "whole") == 0
    (pipe / WEIGHTS).unlink()
    network.save_pretrained(pipe / "unet", max_shard_size="200KB")
    before = files_in(pipe)
    assert len([name for name in before if "-of-" in name]) > 1
    assert run("apply", pipe, a, "--out", root / "shards") == 0
    whole, shards = (
        UNet2DConditionModel.from_pretrained(root / name / "unet").state_dict()
        for name in ("whole", "shards")
    )
    assert all(torch.equal(whole[name], shards[name]) for name in whole | shards)
    assert run("remove", root / "shards", a, "--out", root / "restored") == 0
    assert files_in(root / "restored") == before


def test_apply_and_remove_make_the_same_folder_again(root, capsys):
    pipe, erased, restored = root / "pipe", root / "erased", root / "restored"
    a, before = root / "a.safetensors", files_in(pipe)
    assert run("apply", pipe, a, "--out", erased) == 0
    proof, path = capsys.readouterr().out.splitlines()
    assert path == str(erased) and "; 0 of them changed" in proof
    kept = json.loads((erased / "frozen.json").read_text())
    assert kept["frozen_changed"] == 0 and kept["digests"]["patch"] == read_patch(a).digest
    changed = files_in(erased)
    assert changed.keys() == before.keys()
    assert [name for name in before if changed[name] != before[name]] == [WEIGHTS]
    loaded = UNet2DConditionModel.from_pretrained(erased / "unet")
    original = UNet2DConditionModel.from_pretrained(pipe / "unet")
    moved = sum(
        int((p != q).sum()) for p, q in zip(loaded.parameters(), original.parameters(), strict=True)
    )
    assert moved == round(0.1 * original.num_parameters())
    assert run("remove", erased, a, "--out", restored) == 0
    assert files_in(restored) == before == files_in(pipe)


def test_a_network_alone_and_in_place(root):
    unet = root / "pipe" / "unet"
    before = files_in(unet)
    assert run("apply", unet, root / "a.safetensors", "--out", unet, "--force") == 0
    assert files_in(unet) != before
    assert run("remove", unet, root / "a.safetensors", "--out", unet, "--force") == 0
    assert files_in(unet) == before


def test_info(root, capsys):
    a, b = root / "a.safetensors", root / "b.safetensors"
    assert run("info", a, b) == 0
    text = capsys.readouterr().out
    assert "concept   concept a" in text and "(10.00%)" in text and "in common " in text
    assert run("info", a, b, "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["base"] == second["base"] != first["result"]
    assert first["in_common"] == {} and first["bytes"] == a.stat().st_size
    assert 0 < second["in_common"][str(a)] < second["entries"]


def test_export_of_a_transformer_pipeline(tmp_path, capsys):
    torch.manual_seed(0)
    base = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, num_layers=1, sample_size=4,
        num_embeds_ada_norm=3,
    )  # fmt: skip
    base.save_pretrained(tmp_path / "pipe" / "transformer")
    erased = copy.deepcopy(base)
    name = "transformer_blocks.0.attn1.to_q.weight"
    erased.get_parameter(name).data[0, 0] += 1
    mask = SaliencyMask.from_dense({name: erased.get_parameter(name) != base.get_parameter(name)})
    save_patch(tmp_path / "a.safetensors", base, erased, mask)
    out = tmp_path / "out"
    assert (
        run(
            "export",
            tmp_path / "pipe",
            tmp_path / "a.safetensors",
            "--to",
            "peft-shira",
            "--out",
            out,
        )
        == 0
    )
    assert "exact" in capsys.readouterr().out
    assert set(load_file(out / "adapter_model.safetensors")) == {
        f"base_model.model.{name.removesuffix('.weight')}.shira_{part}"
        for part in ("indices", "weight")
    }


@pytest.mark.parametrize("command", ["apply", "remove"])
def test_force_leaves_what_is_no_copy_of_the_model(root, capsys, command):
    pipe, a, out = root / "pipe", root / "a.safetensors", root / "out"
    (out / "unet").mkdir(parents=True)
    (out / "unet" / "config.json").write_text("{}")
    (out / "unet" / "thesis.tex").write_text("precious")
    before = files_in(root)
    assert run(command, pipe, a, "--out", out, "--force") == 2
    assert "'unet/thesis.tex'" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert files_in(root) == before


def test_a_frozen_entry_that_changed_ends_with_code_3_and_without_a_copy(root, capsys, monkeypatch):
    def damaged(weights, path, metadata):
        patch = read_patch(root / "a.safetensors")
        name, salient = next(
            (n, patch.positions[n].tolist()) for n in weights if n in patch.positions
        )
        frozen = next(place for place in range(weights[name].numel()) if place not in salient)
        weights[name].view(-1)[frozen] += 1
        save_file(weights, path, metadata)

    monkeypatch.setattr(folders, "save_file", damaged)
    assert run("apply", root / "pipe", root / "a.safetensors", "--out", root / "erased") == 3
    error = capsys.readouterr().err
    assert str(root / "erased") in error and "1 frozen entry of '" in error
    assert not (root / "erased").exists() and not list(root.glob(".*"))
