"""A pipeline in one file is what diffusers reads back from it, bit for bit."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save
from tiny_architectures import FAMILIES, clip
from tiny_pipeline import letters

from pecker_fast import apply_patch
from pecker_fast.cli import main
from pecker_fast.errors import PeckerError
from pecker_fast.models.single_file import save_single_file
from pecker_fast.models.sources import load_single_file

KINDS = {
    "Stable Diffusion": StableDiffusionPipeline,
    "Stable Diffusion XL": StableDiffusionXLPipeline,
}
OPEN = "Stable Diffusion 2"  # with OpenCLIP's text encoder


def saved(name, folder):
    """A tiny pipeline, with other weights in each place so that a swap is seen."""
    family = name.removesuffix(" 2")
    pipeline = FAMILIES[family](folder)
    if name == OPEN:
        pipeline.text_encoder = clip(letters(folder / "again"), 8)
        pipeline.text_encoder.config.hidden_act = "gelu"
    torch.manual_seed(1)
    with torch.no_grad():
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                for param in part.parameters():
                    param.copy_(torch.randn(param.shape))
    pipeline.save_pretrained(folder)
    return KINDS[family], pipeline


@pytest.mark.parametrize("name", [*KINDS, OPEN])
def test_diffusers_reads_it_back(name, tmp_path):
    kind, before = saved(name, tmp_path / "pipeline")
    out = tmp_path / "one.safetensors"
    save_single_file(tmp_path / "pipeline", out)
    after = kind.from_single_file(
        str(out), config=str(tmp_path / "pipeline"), local_files_only=True
    )
    count = 0
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if not hasattr(before, part):
            continue
        found = getattr(after, part).state_dict()
        for key, value in getattr(before, part).state_dict().items():
            assert torch.equal(found[key], value), f"{part}: {key}"
            count += 1
    assert count > 200
    assert len(load_file(out)) <= count  # OpenCLIP has three in one


def test_by_the_command(tmp_path, capsys):
    folder = tmp_path / "pipeline"
    _, before = saved("Stable Diffusion", folder)
    before.unet.half().save_pretrained(folder / "unet")
    schedule = folder / "scheduler" / "scheduler_config.json"
    schedule.write_text(schedule.read_text().replace('"epsilon"', '"v_prediction"'))
    out = tmp_path / "one.safetensors"
    assert main(["convert", str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "v_prediction" in printed and str(out) in printed
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert load_file(out)[name].dtype == torch.float16
    assert main(["convert", str(folder), "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["convert", str(folder), "--out", str(out), "--force"]) == 0
    assert main(["convert", str(folder), "--out", str(tmp_path / "x"), "--slot", "ema"]) == 2
    assert "--slot" in capsys.readouterr().err


def test_erased_by_the_command(tmp_path, capsys):
    folder, file, out = tmp_path / "pipeline", tmp_path / "one.safetensors", tmp_path / "run"
    FAMILIES["Stable Diffusion"](folder, length=48).to(torch.float16).save_pretrained(folder)
    save_single_file(folder, file)
    capsys.readouterr()
    words = ["erase", "--pipeline", str(file), "--recipe", "object", "--name", "cat"]
    words += ["--override", "dog", "--no-previews", "--iterations", "1", "--out", str(out)]
    settings = "first_stage=none mask.kind=random batch_size=2 micro_batch=null generator.lr=1e-2"
    words += [word for setting in settings.split() for word in ("--set", setting)]
    for config, named in (
        ([], "--pipeline-config"),
        (["--pipeline-config", str(tmp_path / "nowhere")], "nowhere"),
        (["--pipeline-config", str(folder), "--pipeline", str(folder)], "in one file"),
    ):
        assert main([*words, *config]) == 2
        said = capsys.readouterr().err.strip()
        assert named in said and len(said.splitlines()) == 1
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:1000])
    (tmp_path / "other.safetensors").write_bytes(save({"a": torch.zeros(2)}))
    (tmp_path / "one.ckpt").write_bytes(b"")
    for name in ("cut.safetensors", "other.safetensors", "one.ckpt"):
        with pytest.raises(PeckerError, match=name):
            load_single_file(tmp_path / name, folder)

    assert main([*words, "--pipeline-config", str(folder)]) == 0
    network = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(folder / network), load_file(out / "pipeline" / network)
    assert {value.dtype for value in after.values()} == {torch.float16}
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    apply_patch(before, out / "patch.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_what_cannot_be_one_file(tmp_path):
    folder = tmp_path / "pipeline"
    FAMILIES["FLUX.1"](folder)
    with pytest.raises(PeckerError, match=r"FLUX\.1 cannot be written as one file"):
        save_single_file(folder, tmp_path / "one.safetensors")
    with pytest.raises(PeckerError, match="name it so"):
        save_single_file(folder, tmp_path / "one.ckpt")
    saved("Stable Diffusion", tmp_path / "other")
    config = tmp_path / "other" / "unet" / "config.json"
    for changed, named in (
        ({"layers_per_block": [1, 1]}, "another number of layers"),
        ({"layers_per_block": 1, "time_cond_proj_dim": 8}, "has not"),
    ):
        content = json.loads(config.read_text()) | changed
        network = UNet2DConditionModel.from_config(content)
        network.save_pretrained(config.parent)
        with pytest.raises(PeckerError, match=named):
            save_single_file(tmp_path / "other", tmp_path / "one.safetensors")
    (tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(PeckerError, match=r"vae: diffusion_pytorch_model\.safetensors is missing"):
        save_single_file(tmp_path / "other", tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()
