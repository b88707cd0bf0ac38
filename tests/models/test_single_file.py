"""A checkpoint in one file, as other programs write it, is read through diffusers and erased."""

import re

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny_pipeline import save_tiny_pipeline

from pecker_fast import apply_patch
from pecker_fast.cli import main
from pecker_fast.errors import PeckerError
from pecker_fast.models.sources import load_single_file

# Names of the original layout for the tiny pipeline: two levels of one layer, on the way up of two.
UNET = (
    (r"(resnets\.\d)\.norm1", r"\1.in_layers.0"),
    (r"(resnets\.\d)\.conv1", r"\1.in_layers.2"),
    (r"(resnets\.\d)\.norm2", r"\1.out_layers.0"),
    (r"(resnets\.\d)\.conv2", r"\1.out_layers.3"),
    (r"\.time_emb_proj", ".emb_layers.1"),
    (r"\.conv_shortcut", ".skip_connection"),
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^down_blocks\.0\.downsamplers\.0\.conv", "input_blocks.2.0.op"),
    (r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.0"),
    (r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.1"),
    (r"^up_blocks\.0\.upsamplers\.0", "output_blocks.1.2"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.1\.attentions\.(\d)", lambda m: f"output_blocks.{2 + int(m[1])}.1"),
)
VAE = (
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{1 - int(m[1])}.block"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_(q|k|v)", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
)


TEXT = ((r"^(?!text_model)", "text_model."),)


def save_in_one(pipeline, file):
    tensors = {}
    for part, prefix, names in (
        (pipeline.unet, "model.diffusion_model.", UNET),
        (pipeline.vae, "first_stage_model.", VAE),
        (pipeline.text_encoder, "cond_stage_model.transformer.", TEXT),
    ):
        for name, tensor in part.state_dict().items():
            for pattern, replacement in names:
                name = re.sub(pattern, replacement, name)
            tensors[prefix + name] = tensor.contiguous()
    save_file(tensors, file)


def test_erased_by_the_command(tmp_path, capsys):
    folder, file, out = tmp_path / "pipeline", tmp_path / "one.safetensors", tmp_path / "run"
    pipeline = save_tiny_pipeline(folder, length=48).to(torch.float16)
    pipeline.save_pretrained(folder)
    save_in_one(pipeline, file)
    read = load_single_file(file, folder)
    for part in ("unet", "vae", "text_encoder"):
        found = getattr(read, part).state_dict()
        for name, value in getattr(pipeline, part).state_dict().items():
            assert torch.equal(found[name], value), f"{part}: {name}"
    words = ["erase", "--pipeline", str(file), "--recipe", "object", "--name", "cat"]
    words += ["--override", "dog", "--no-previews", "--iterations", "1", "--out", str(out)]
    settings = "first_stage=none mask.kind=random batch_size=2 micro_batch=null generator.lr=1e-2"
    words += [word for setting in settings.split() for word in ("--set", setting)]
    capsys.readouterr()
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
