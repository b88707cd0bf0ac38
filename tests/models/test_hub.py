"""Models by their id, from a server that does as the hub does."""

import shutil
from pathlib import Path

import pytest
import torch
from hub_server import serving
from tiny_models import tiny_scheduler, tiny_unet
from tiny_pipeline import save_tiny_pipeline

from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder
from pecker_fast.models.hub import files_to_read, hub_id_of, local_folder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.runs.finding import is_hub_id


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """In float32, and in float16 as a variant, beside what must not be downloaded."""
    folder = tmp_path_factory.mktemp("hub") / "pipeline"
    theirs = save_tiny_pipeline(folder)
    shutil.rmtree(folder / "letters")
    theirs.to(torch.float16)
    theirs.save_pretrained(folder, variant="fp16")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (folder / "whole.safetensors").write_bytes(b"x")
    (folder / "run.py").write_text("raise SystemExit")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path, pipeline):
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["me/tiny"] = pipeline
        yield hub


def test_only_what_is_read_is_downloaded(hub, pipeline):
    folder = local_folder("me/tiny")
    names = {file for _, file in hub.read}
    assert {"unet/diffusion_pytorch_model.safetensors", "model_index.json"} <= names
    assert "text_encoder/model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".py")) or "fp16" in name]
    assert "whole.safetensors" not in names
    assert hub_id_of(folder) == "me/tiny" and hub_id_of(pipeline) is None
    found, same = PipelineFolder.load(folder), PipelineFolder.load(pipeline)
    assert torch.equal(found.network.conv_in.weight, same.network.conv_in.weight)
    assert found.network.dtype == torch.float32

    hub.read.clear()
    assert local_folder("me/tiny", local_files_only=True) == folder
    assert local_folder("me/tiny", revision="main") == folder
    assert not hub.read


def test_a_variant(hub):
    folder = local_folder("me/tiny", variant="fp16")
    weights = [file for _, file in hub.read if file.endswith(".safetensors")]
    assert weights and all(file.endswith(".fp16.safetensors") for file in weights)
    with pytest.raises(PeckerError, match=r"fp16.* give --variant"):
        PipelineFolder.load(folder)
    assert PipelineFolder.load(folder, "fp16").network.dtype == torch.float16


def test_a_network_alone(hub, tmp_path):
    ModelFolder(tiny_unet(), tiny_scheduler(), ("a", "b", "c")).save(tmp_path / "class")
    bare = shutil.copytree(tmp_path / "class" / "unet", tmp_path / "bare")
    shutil.copy(tmp_path / "class/scheduler/scheduler_config.json", bare)
    hub.repositories |= {"me/class": tmp_path / "class", "me/bare": bare}
    for name in ("me/class", "me/bare"):
        assert ModelFolder.load(local_folder(name)).num_classes == 3


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("me/other", {}, "no such model on the hub"),
        ("me/closed", {}, "terms"),
        ("me/tiny", {"revision": "v2"}, "no such revision"),
        ("me/tiny", {"variant": "ema"}, "no weights of the variant 'ema'"),
        ("me/tiny", {"local_files_only": True}, "--offline"),
        ("./me/tiny", {"revision": "main"}, "revision 'main' is for ids"),
    ],
)
def test_refused_in_a_line(hub, name, options, named):
    hub.gated.add("me/closed")
    with pytest.raises(PeckerError) as caught:
        local_folder(name, **options)
    message = str(caught.value)
    assert name in message and named in message and "\n" not in message and len(message) < 500
    assert not hub.read


def test_no_hub_there(hub, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between attempts, 20 s in all
    with pytest.raises(PeckerError, match="the hub cannot be reached"):
        local_folder("me/tiny")


def test_what_is_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/first").mkdir(parents=True)
    assert is_hub_id("owner/name") and is_hub_id("o-1/n.m_2")
    for path in (
        "runs/first", "./owner/name", "/owner/name", "../name", "~/name", "name", "a/b/c",
        "owner/", "owner/name.safetensors", "owner/.hidden", "owner/na me", "",
    ):  # fmt: skip
        assert not is_hub_id(path), path


UNET, TEXT = "unet/diffusion_pytorch_model", "text_encoder/model"


def test_which_files_are_read():
    shards = [f"{UNET}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half = [f"{UNET}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = [f"{UNET}.safetensors.index.json", f"{UNET}.safetensors.index.fp16.json"]
    other = [f"{TEXT}.safetensors"]
    everything = [*shards, *half, *index, *other]
    assert files_to_read(everything, None) == sorted([*shards, *index, *other])
    assert files_to_read(everything, "fp16") == sorted([*half, *index, *other])
    # Pickles, whole checkpoints and exports to other programs stay where they are.
    strange = ["vae_encoder/openvino_model.bin", f"{UNET}.bin", "whole.safetensors"]
    assert files_to_read([*strange, *other], None) == other
