"""A random pipeline in Stable Diffusion's format, small enough to sample in milliseconds."""

import json
import string

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH, LENGTH = 8, 12
CHANNELS, SIDE = 2, 8  # of a latent; the image's side is twice that


def save_tiny_pipeline(
    folder, prediction_type="epsilon", image_channels=3, length=LENGTH, **schedule
):
    """Write the pipeline folder and return it as diffusers' own pipeline."""
    torch.manual_seed(8)
    tokenizer = letters(folder / "letters", length)
    text_encoder = CLIPTextModel(clip_config(tokenizer, WIDTH, num_hidden_layers=1))
    unet = tiny_text_unet()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **schedule,
    )
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae(image_channels),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipeline, folder)


def saved(pipeline, folder):
    """The pipeline, which draws in silence and lies in the folder, too."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def clip_config(tokenizer, width, **options):
    """Of a CLIP text encoder of that width for that tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def tiny_text_unet(dropout=0.0):
    """A U-Net of latents that is told text embeddings (L, `WIDTH`)."""
    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        dropout=dropout,
    )


def tiny_vae(image_channels=3, shift=None):
    """Its images have twice the side of its latents."""
    return AutoencoderKL(
        in_channels=image_channels,
        out_channels=image_channels,
        latent_channels=CHANNELS,
        sample_size=2 * SIDE,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.7,
        shift_factor=shift,
    ).eval()


def letters(folder, length=LENGTH):
    """A CLIP tokenizer that spells: a token per letter, another for the last of a word."""
    folder.mkdir(parents=True)
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: index for index, token in enumerate([*letters, start, end])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=end,
        model_max_length=length,
    )
