"""Model and pipeline folders as they come in: what is not supported is refused by name."""

import json
import os
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from pecker_fast_demo import emoji_folder
from safetensors.torch import load_file, save_file
from tiny_models import model_of_shapes, tiny_scheduler, tiny_unet
from tiny_pipeline import save_tiny_pipeline
from transformers import CLIPTextConfig

from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.models.texts import load_tokenizer
from pecker_fast.runs.finding import find_pipeline

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
DEEP = "[" * 10**5


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    model_of_shapes().save(root / "model")
    save_tiny_pipeline(root / "pipeline")
    return root


@pytest.fixture
def model(originals, tmp_path):
    return shutil.copytree(originals / "model", tmp_path / "model")


@pytest.fixture
def pipeline(originals, tmp_path):
    return shutil.copytree(originals / "pipeline", tmp_path / "pipeline")


def change(file, **entries):
    """Set entries of a JSON file; `...` takes one out."""
    content = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def refused(kind, folder, *named):
    with pytest.raises(PeckerError) as caught:
        kind.load(folder)
    message = str(caught.value)
    assert all(str(name) in message for name in named), message
    assert "\n" not in message and len(message) < 1500
    return message


# ---- pecker_fast.json, which people write by hand


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"class_names": [1, 2, 3]}, "class_names.0"),
        ({"class_names": ["a", "\x1b[31mb"]}, "cannot be printed"),
        ({"class_names": ["a" * 10**5]}, "class_names.0"),
        ({"class_name": ["a"]}, "'class_name'; known are 'kind', 'class_names'"),
        ({"figures": {"t_init": 1000}}, "figures.t_init"),
        ({"figures": {"training": 3}}, "figures.training"),
    ],
)
def test_descriptions_of_models(model, entries, named):
    change(model / "pecker_fast.json", **entries)
    refused(ModelFolder, model, model / "pecker_fast.json", named)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"kind": "\xff"}', DEEP.encode(), b"NaN"])
def test_descriptions_that_are_none(model, pipeline, content):
    for kind, folder in ((ModelFolder, model), (PipelineFolder, pipeline)):
        (folder / "pecker_fast.json").write_bytes(content)
        refused(kind, folder, "pecker_fast.json")


@pytest.mark.parametrize(
    "entries", [{"t_init": "625"}, {"t_init": 1000}, {"kind": 7}, {"class_names": "abc"}]
)
def test_descriptions_of_pipelines(pipeline, entries):
    (pipeline / "pecker_fast.json").write_text(json.dumps({"trained_on": "x"} | entries))
    refused(PipelineFolder, pipeline, "pecker_fast.json", next(iter(entries)))


# ---- the noise schedule


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "FlowMatchHeunDiscreteScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"predict_epsilon": False}, "predict_epsilon"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps"),
        ({"beta_start": ...}, "beta_start"),
        ({"beta_end": float("nan")}, "beta_end"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"variance_type": "learned_range"}, "learned_range"),
        ({"trained_betas": [0.1, 0.2]}, "num_train_timesteps"),
    ],
)
def test_schedules(model, pipeline, entries, named):
    for kind, folder in ((ModelFolder, model), (PipelineFolder, pipeline)):
        file = folder / "scheduler" / "scheduler_config.json"
        change(file, **entries)
        refused(kind, folder, file, named)


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "EulerDiscrete", "LCM", "DPMSolverMultistep"])
def test_schedulers_that_share_the_process(model, name):
    before = ModelFolder.load(model).scheduler.alphas_cumprod
    change(model / "scheduler" / "scheduler_config.json", _class_name=f"{name}Scheduler")
    assert torch.equal(ModelFolder.load(model).scheduler.alphas_cumprod, before)


# ---- networks


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"sample_size": None}, "sample_size"),
        ({"sample_size": 3}, "describes no UNet2DModel"),
        ({"sample_size": [8, 8, 8]}, "describes no UNet2DModel"),
        ({"sample_size": 10**9}, "sample_size"),
        ({"out_channels": 2}, "does not fit"),
        ({"layers_per_block": 10**9}, "layers_per_block"),
        ({"class_embed_type": "timestep"}, "does not fit"),
        ({"num_class_embeds": None}, "no class embedding"),
        ({"num_class_embeds": 10**6}, "class_embedding.weight"),
        ({"block_out_channels": [1 << 19, 1 << 19]}, "does not fit"),
        ({"norm_num_groups": 3}, "describes no UNet2DModel"),
        ({"act_fn": "wave"}, "describes no UNet2DModel"),
        ({"_class_name": "UNet2DConditionModel"}, "--pipeline"),
    ],
)
def test_configurations_of_class_models(model, entries, named):
    change(model / "unet" / "config.json", **entries)
    if entries in ({"num_class_embeds": None},):
        weights = load_file(model / WEIGHTS)
        del weights["class_embedding.weight"]
        save_file(weights, model / WEIGHTS)
    refused(ModelFolder, model, named)


@pytest.mark.parametrize(
    ("part", "entries", "named"),
    [
        ("unet", {"sample_size": None}, "sample_size"),
        ("unet", {"in_channels": 5}, "does not fit"),
        ("unet", {"addition_embed_type": "text_time"}, "describes no UNet2DConditionModel"),
        ("unet", {"cross_attention_dim": 16}, "does not fit"),
        ("unet", {"flip_sin_to_cos": 3}, "flip_sin_to_cos"),
        ("text_encoder", {"hidden_size": 9}, "text_encoder"),
        ("text_encoder", {"vocab_size": 20}, "text_encoder"),
        ("vae", {"latent_channels": 4}, "does not fit"),
        ("vae", {"latents_mean": [1.0, 2.0]}, "latents_mean"),
    ],
)
def test_configurations_of_pipelines(pipeline, part, entries, named):
    change(pipeline / part / "config.json", **entries)
    refused(PipelineFolder, pipeline, part, named)


# ---- weights


PARTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


def _half(weights):
    return {name: weights[name] for name in sorted(weights)[::2]}


def _of_another(weights):
    return {"conv_in.weight": torch.zeros(3), **_half(weights)}


SPOILT = {
    "without one": lambda weights: dict(sorted(weights.items())[1:]),
    "half of them": _half,
    "one more": lambda weights: {**weights, "wizard.weight": torch.zeros(3)},
    "another's": _of_another,
    "another shape": lambda weights: {**weights, max(weights): torch.zeros(1, 1, 1)},
    "not finite": lambda weights: {**weights, max(weights): weights[max(weights)] * torch.nan},
    "PEFT's": lambda weights: {**weights, f"{min(weights)}.lora_A.default.weight": torch.zeros(2)},
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", SPOILT)
def test_weights_of_every_part(pipeline, part, how):
    file = pipeline / PARTS[part]
    save_file(SPOILT[how](load_file(file)), file, metadata={"format": "pt"})
    if (part, how) == ("vae", "not finite"):  # its weights are read when they are needed
        with pytest.raises(PeckerError, match="NaN"):
            _ = PipelineFolder.load(pipeline).vae
        return
    named = {"not finite": "NaN", "PEFT's": "merge_and_unload"}.get(how, "does not fit")
    refused(PipelineFolder, pipeline, file, named)


def test_weights_that_may_not_be_read_are_not_called_truncated(model, monkeypatch):
    def refuse(path, *_args, **_options):  # root may read everything
        if str(path).endswith(".safetensors"):
            raise PermissionError(13, os.strerror(13))
        return opened(path, *_args, **_options)

    opened = open
    monkeypatch.setattr("builtins.open", refuse)
    assert "truncated" not in refused(ModelFolder, model, os.strerror(13))


# ---- pipelines


def test_a_tokenizer_without_a_longest_text_takes_the_text_encoders(pipeline):
    before = PipelineFolder.load(pipeline).texts.encode(["a bee"])
    change(pipeline / "tokenizer" / "tokenizer_config.json", model_max_length=...)
    assert torch.equal(PipelineFolder.load(pipeline).texts.encode(["a bee"]), before)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json", "merges.txt"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"{", DEEP.encode()])
def test_tokenizers(tmp_path, name, content):
    folder = shutil.copytree(emoji_folder() / "tokenizer", tmp_path / "tokenizer")
    (folder / name).write_bytes(content)
    encoder = CLIPTextConfig(vocab_size=10_000, max_position_embeddings=24)
    with pytest.raises(PeckerError, match="tokenizer") as caught:
        load_tokenizer(folder, "CLIPTokenizer", encoder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_tokenizer_of_more_words_than_the_text_encoder_knows(pipeline):
    shutil.rmtree(pipeline / "tokenizer")
    shutil.copytree(emoji_folder() / "tokenizer", pipeline / "tokenizer")
    refused(PipelineFolder, pipeline, "tokenizer", "tokens")


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_pipelines_of_class_models_are_models(tmp_path, scheduler):
    unet = tiny_unet()
    DDPMPipeline(unet, scheduler.from_config(tiny_scheduler().config)).save_pretrained(tmp_path)
    assert find_pipeline(tmp_path) is None
    loaded = ModelFolder.load(tmp_path)
    assert torch.equal(loaded.network.conv_in.weight, unet.conv_in.weight)
    assert loaded.num_classes == 3
