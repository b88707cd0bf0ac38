"""Weights as they lie on disk: in shards, in half precision, as a variant."""

import json
import shutil

import pytest
import torch
from tiny_models import tiny_scheduler, tiny_unet
from tiny_pipeline import save_tiny_pipeline

from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.models.weights import of_variant, weights_in

NAME = "diffusion_pytorch_model.safetensors"
INDEX = f"{NAME}.index.json"
SHARDS = "20KB"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """`halves` in shards, and `both`: whole in float32 with the halves as a variant in shards."""
    root = tmp_path_factory.mktemp("weights")
    theirs = save_tiny_pipeline(root / "both")
    theirs.to(torch.bfloat16)
    theirs.save_pretrained(root / "both", variant="bf16", max_shard_size=SHARDS)
    theirs.save_pretrained(root / "halves", max_shard_size=SHARDS)
    assert len(list((root / "halves/unet").glob("*.safetensors"))) > 2
    return root


def test_shards_and_variants_are_the_same_weights(pipelines):
    whole, variant = (PipelineFolder.load(pipelines / "both", v) for v in (None, "bf16"))
    shards = PipelineFolder.load(pipelines / "halves")
    assert [p.network.dtype for p in (whole, variant, shards)] == [
        torch.float32, torch.bfloat16, torch.bfloat16
    ]  # fmt: skip
    for name, value in whole.network.state_dict().items():
        for each in (variant, shards):
            assert torch.equal(each.network.state_dict()[name], value.bfloat16())
    for each in (whole, variant, shards):
        assert each.vae.dtype == torch.float32


def test_a_copy_of_a_variant_is_plain(pipelines, tmp_path):
    variant = PipelineFolder.load(pipelines / "both", "bf16")
    variant.save(tmp_path / "made", card={})
    made = PipelineFolder.load(tmp_path / "made")
    assert made.texts.encoders[0].dtype == made.network.dtype == torch.bfloat16
    plain = made.vae.state_dict()
    for name, value in variant.vae.state_dict().items():
        assert torch.equal(plain[name], value)


def test_a_class_model_in_shards_and_as_a_variant(tmp_path):
    model = ModelFolder(tiny_unet(), tiny_scheduler(), ("a", "b", "c"))
    model.save(tmp_path)
    (tmp_path / "unet" / NAME).unlink()
    model.network.save_pretrained(tmp_path / "unet", variant="ema", max_shard_size=SHARDS)
    with pytest.raises(PeckerError, match=r"ema.* give --variant"):
        ModelFolder.load(tmp_path)
    with of_variant("ema"):
        loaded = ModelFolder.load(tmp_path)
    for name, value in model.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)


def _elsewhere(folder):
    names = json.loads((folder / INDEX).read_text())["weight_map"]
    content = {"weight_map": dict.fromkeys(names, "../../secret.safetensors")}
    (folder / INDEX).write_text(json.dumps(content))


def _twice(folder):
    first, second, *_ = sorted(folder.glob("*-of-*"))
    shutil.copy(first, second)


SPOILT = {
    "elsewhere": (_elsewhere, "'../../secret.safetensors'"),
    "a shard gone": (lambda folder: min(folder.glob("*-of-*")).unlink(), "which is missing"),
    "a shard twice": (_twice, "in another file"),
    "a shard cut": (lambda folder: min(folder.glob("*-of-*")).write_bytes(b"\x09"), "truncated"),
}


@pytest.mark.parametrize("way", SPOILT)
def test_spoilt_shards(pipelines, tmp_path, way):
    folder = shutil.copytree(pipelines / "halves", tmp_path / "pipeline")
    spoil, named = SPOILT[way]
    spoil(folder / "unet")
    with pytest.raises(PeckerError) as caught:
        PipelineFolder.load(folder)
    message = str(caught.value)
    assert "unet" in message and named in message and "\n" not in message and len(message) < 700


def test_the_files_of_one_set(pipelines):
    folder = pipelines / "both" / "unet"
    assert weights_in(folder, NAME).files == [folder / NAME]
    with of_variant("bf16"):
        found = weights_in(folder, NAME)
    assert (found.variant, found.plain) == ("bf16", INDEX) and len(found.files) > 2
    assert all("bf16" in file.name for file in found.files)


def test_nothing_written_says_where_it_was_read(pipelines, tmp_path):
    """Whoever uploads a result does not publish the folders of a machine."""
    pipeline = PipelineFolder.load(pipelines / "both")
    pipeline.save(tmp_path / "written", card={})
    config = (tmp_path / "written/unet/config.json").read_text()
    assert "_name_or_path" not in config and str(pipelines) not in config
    again = PipelineFolder.load(tmp_path / "written")
    assert again.network.config.cross_attention_dim == pipeline.network.config.cross_attention_dim
