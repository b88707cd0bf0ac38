"""Each entry of each configuration with each kind of value: refused, or a model that draws.

Of the entries and values one in eight is tried (`shares.py`), at each entry another one or two.
"""

import json
import shutil
from functools import cache

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from shares import chosen
from tiny_architectures import FAMILIES
from tiny_models import model_of_shapes, tiny_dit
from tiny_pipeline import CHANNELS, LENGTH, SIDE, WIDTH, save_tiny_pipeline, tiny_vae
from transformers import CLIPTextConfig

from pecker_fast.distill.networks import diffusers_predictor
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder, latents
from pecker_fast.models.architectures import architecture_of, base
from pecker_fast.models.architectures.stable_diffusion import StableDiffusion
from pecker_fast.models.description import pipeline_parts
from pecker_fast.models.latents import load_autoencoder
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.models.schedules import read_schedule
from pecker_fast.models.texts import load_encoder, load_tokenizer

VALUES = (None, "x", -1, 0, 3, 10**39, 2.5, True, ..., [], [3, 5], {})


def use_model(folder):
    model = ModelFolder.load(folder)
    constants = {"t_init": None, "t_min": 0, "t_max": 1}
    NoiseSchedule.from_scheduler(model.scheduler, **constants)
    noise = torch.zeros(2, *model.network_shape)
    drawn = model.network(noise, torch.tensor([3, 0]), torch.tensor([0, model.num_classes - 1]))
    assert model.images(drawn.sample).shape == (2, *model.image_shape)


def use_index(folder):
    architecture_of(*pipeline_parts(folder / "model_index.json"), folder)


def use_schedule(folder):
    config = read_schedule(folder / "scheduler" / "scheduler_config.json")
    NoiseSchedule.from_scheduler_config(config, t_init=0, t_min=0, t_max=1)


def use_unet(folder):
    unet = StableDiffusion().load_network(folder / "unet")
    noise = torch.zeros(1, CHANNELS, SIDE, SIDE)
    assert unet(noise, 3, torch.zeros(1, LENGTH, WIDTH)).sample.shape == noise.shape


def use_vae(folder):
    decoder = load_autoencoder(folder / "vae", CHANNELS)
    images = latents.decode(decoder, torch.zeros(1, CHANNELS, SIDE, SIDE))
    assert images.shape == (1, 3, 2 * SIDE, 2 * SIDE)


def use_encoder(kind, part="text_encoder"):
    def use(folder):
        encoder = load_encoder(folder / part, kind)
        tokens = torch.zeros(1, LENGTH, dtype=torch.int64)
        assert encoder(tokens)[0].shape == (1, LENGTH, encoder.config.hidden_size)

    return use


def use_tokenizer(kind, part="tokenizer", words=54):
    def use(folder):
        encoder = CLIPTextConfig(vocab_size=words, max_position_embeddings=LENGTH)
        tokenizer = load_tokenizer(folder / part, kind, encoder)
        limit = tokenizer.model_max_length
        assert tokenizer(["bee"], padding="max_length", max_length=limit, truncation=True)

    return use


def use_family(folder):
    whole = PipelineFolder.load(folder)
    noise = torch.zeros(1, *whole.network_shape)
    schedule = NoiseSchedule.from_scheduler_config(
        whole.scheduler_config, t_init=None, t_min=0, t_max=1
    )
    predict = diffusers_predictor(schedule, whole.architecture.call, whole.prediction_type)
    drawn = predict(whole.network, noise, torch.tensor([3]), whole.texts.encode(["a bee"]))
    assert drawn.shape == noise.shape


FURTHER = {
    "Stable Diffusion XL": "unet/config.json",
    "Stable Diffusion 3": "transformer/config.json",
    "FLUX.1": "transformer/config.json",
    "PixArt": "transformer/config.json",
    "SANA": "transformer/config.json",
}
USES = {
    "model/pecker_fast.json": use_model,
    "model/scheduler/scheduler_config.json": use_model,
    "model/unet/config.json": use_model,
    "latent/scheduler/scheduler_config.json": use_model,
    "latent/transformer/config.json": use_model,
    "pipeline/model_index.json": use_index,
    "pipeline/scheduler/scheduler_config.json": use_schedule,
    "pipeline/unet/config.json": use_unet,
    "pipeline/text_encoder/config.json": use_encoder("CLIPTextModel"),
    "pipeline/vae/config.json": use_vae,
    "pipeline/tokenizer/tokenizer_config.json": use_tokenizer("CLIPTokenizer"),
    "FLUX.1/scheduler/scheduler_config.json": use_schedule,
    "FLUX.1/text_encoder_2/config.json": use_encoder("T5EncoderModel", "text_encoder_2"),
    "FLUX.1/tokenizer_2/tokenizer_config.json": use_tokenizer("T5Tokenizer", "tokenizer_2"),
    "SANA/scheduler/scheduler_config.json": use_schedule,
    "SANA/text_encoder/config.json": use_encoder("Gemma2Model"),
    "SANA/tokenizer/tokenizer_config.json": use_tokenizer("GemmaTokenizer"),
    "SANA/vae/config.json": use_vae,
    **{f"{family}/{file}": use_family for family, file in FURTHER.items()},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("entries")
    model_of_shapes().save(root / "model")
    network, flow = tiny_dit(3, (CHANNELS, SIDE, SIDE)), FlowMatchEulerDiscreteScheduler()
    ModelFolder(network, flow, ("circle", "square", "star"), vae=tiny_vae()).save(root / "latent")
    save_tiny_pipeline(root / "pipeline")
    shutil.rmtree(root / "pipeline" / "letters")
    for family in FURTHER:
        FAMILIES[family](root / family)
    return root


@pytest.fixture
def _text_encoders_read_once(monkeypatch):
    """They take most of the time, and stay as they are where a network's configuration changes."""
    monkeypatch.setattr(base, "load_encoder", cache(base.load_encoder))


@pytest.mark.slow
@pytest.mark.usefixtures("_text_encoders_read_once")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", USES)
@torch.no_grad()
def test_every_entry_with_every_kind_of_value(folders, name):
    file, folder, use = folders / name, folders / name.split("/")[0], USES[name]
    text = file.read_text()
    entries = json.loads(text)
    use(folder)
    failed = []
    for entry in entries:
        for value in VALUES:
            if not chosen(f"{name} {entry} {value!r}", 8):
                continue
            changed = {**entries, entry: value}
            file.write_text(json.dumps({k: v for k, v in changed.items() if v is not ...}))
            try:
                use(folder)
            except PeckerError:
                pass
            except Exception as error:
                failed.append(f"{entry} = {value!r}: {type(error).__name__} {str(error)[:80]}")
    file.write_text(text)
    assert not failed, "\n".join(failed)
