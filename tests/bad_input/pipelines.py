"""Text-to-image pipelines: what lies in their folders."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from bad_input.building import case, each, whole_json
from bad_input.seeds import CONCEPT, PROMPTS
from bad_input.spoil import ANY_FILE, TENSORS

INDEX = "pipe/model_index.json"
_WEIGHTS = {
    "unet": "pipe/unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "pipe/text_encoder/model.safetensors",
    "vae": "pipe/vae/diffusion_pytorch_model.safetensors",
}
_PARTS = ("unet", "text_encoder", "vae")


def _without(part: str, folder: Path) -> None:
    shutil.rmtree(folder / "pipe" / part)


def _as_kind(name: str, folder: Path) -> None:
    content = json.loads((folder / INDEX).read_text())
    extra = {
        "StableDiffusionXLPipeline": {"text_encoder_2": ["transformers", "CLIPTextModel"]},
        "FluxPipeline": {"transformer": ["diffusers", "FluxTransformer2DModel"]},
        "IFPipeline": {"text_encoder": ["transformers", "T5EncoderModel"]},
        "DDPMPipeline": {"text_encoder": [None, None], "unet": ["diffusers", "UNet2DModel"]},
        "AudioLDMPipeline": {"text_encoder": ["transformers", "ClapTextModelWithProjection"]},
        "KandinskyPipeline": {"text_encoder": ["kandinsky", "MultilingualCLIP"]},
        "StableDiffusionInpaintPipeline": {},
        "StableDiffusionUpscalePipeline": {},
        "StableDiffusionControlNetPipeline": {"controlnet": ["diffusers", "ControlNetModel"]},
        "StableDiffusionInstructPix2PixPipeline": {},
    }
    (folder / INDEX).write_text(json.dumps({**content, "_class_name": name, **extra[name]}))
    if name in ("StableDiffusionInpaintPipeline", "StableDiffusionInstructPix2PixPipeline"):
        _wider_unet(folder)


def _wider_unet(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "pipe/unet")
    config = {**unet.config, "in_channels": 5}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "pipe/unet")


def _renamed(part: str, name: str, folder: Path) -> None:
    file = folder / _WEIGHTS[part]
    file.rename(file.with_name(name))


def _sharded(index: str, folder: Path) -> None:
    file = folder / _WEIGHTS["unet"]
    file.rename(file.with_name("one.safetensors"))
    (file.parent / f"{file.name}.index.json").write_text(index)


def _dangling(folder: Path) -> None:
    (folder / "pipe/vae/extra.json").symlink_to("nowhere")


_NEEDS = ("pipe",)
_CONFIG = ("--pipeline-config", "pipe")
_SAVED = (*CONCEPT[:9], "pipe/run", *CONCEPT[10:])

CASES = [
    *(
        found
        for part in _PARTS
        for found in whole_json(
            f"{part}/config.json", f"pipe/{part}/config.json", PROMPTS, _NEEDS, named=part
        )
    ),
    *(
        found
        for part, file in _WEIGHTS.items()
        for found in each(part, ANY_FILE | TENSORS, file, PROMPTS, _NEEDS, named=part)
    ),
    *whole_json("index", INDEX, CONCEPT, _NEEDS, named="model_index.json"),
    *whole_json("schedule", "pipe/scheduler/scheduler_config.json", CONCEPT, _NEEDS),
    *(
        found
        for file in ("tokenizer.json", "tokenizer_config.json")
        for found in whole_json(
            file, f"pipe/tokenizer/{file}", PROMPTS, _NEEDS, named="tokenizer"
        )
    ),
    *(case(f"{part} gone", PROMPTS, _NEEDS, partial(_without, part), named=part)
      for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")),
    *(case(f"kind {name}", CONCEPT, _NEEDS, partial(_as_kind, name), named="pipe") for name in (
        "StableDiffusionXLPipeline", "FluxPipeline", "IFPipeline", "DDPMPipeline",
        "AudioLDMPipeline", "KandinskyPipeline", "StableDiffusionInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
    )),
    case("inpainting in sample", PROMPTS, _NEEDS, partial(
        _as_kind, "StableDiffusionInpaintPipeline"
    )),
    *(case(f"{part} as {name}", CONCEPT, _NEEDS, partial(_renamed, part, name), named=part)
      for part in ("unet", "text_encoder")
      for name in ("diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors")),
    *(case(f"shards: {name}", CONCEPT, _NEEDS, partial(_sharded, index), named="unet")
      for name, index in {
          "empty": "", "half": '{"weight_map": {', "null": "null", "list": "[1]",
          "deep": "[" * 10**5, "no map": "{}", "map of none": '{"weight_map": {}}',
          "a list": '{"weight_map": [1]}',
          "numbers": '{"weight_map": {"a": 1}}', "elsewhere": '{"weight_map": {"a": "../../x"}}',
          "a pickle": '{"weight_map": {"a": "one.bin"}}', "a folder": '{"weight_map": {"a": ".."}}',
          "nowhere": '{"weight_map": {"a": "two.safetensors"}}',
      }.items()),
    case("a file", (*CONCEPT[:2], "precious.txt", *CONCEPT[3:]), named="precious.txt"),
    case("one safetensors", (*CONCEPT[:2], _WEIGHTS["unet"], *CONCEPT[3:]), _NEEDS),
    case("nowhere", (*CONCEPT[:2], "nowhere", *CONCEPT[3:]), named="nowhere"),
    case(
        "one file that is a part", (*CONCEPT[:2], _WEIGHTS["unet"], *_CONFIG, *CONCEPT[3:]), _NEEDS,
        named="diffusion_pytorch_model.safetensors",
    ),
    case("one file for a folder", (*CONCEPT, *_CONFIG), _NEEDS, named="--pipeline-config"),
    case("a class model", (*CONCEPT[:2], "model", *CONCEPT[3:]), ("model",), named="model"),
    case("out in the pipeline", _SAVED, _NEEDS, named="pipe"),
    case("dangling link", CONCEPT, _NEEDS, _dangling),
]  # fmt: skip
