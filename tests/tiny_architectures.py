"""Random pipelines of every family that is known, small enough to draw in milliseconds."""

import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_pipeline import CHANNELS, LENGTH, SIDE, letters, save_tiny_pipeline, tiny_vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

POOLED = 6


def clip(tokenizer, width, projected=False):
    """A CLIP text encoder of that width."""
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=POOLED,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def save_tiny_xl(folder):
    """Stable Diffusion XL."""
    torch.manual_seed(8)
    tokenizer = letters(folder / "letters", LENGTH)
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=clip(tokenizer, 8),
        text_encoder_2=clip(tokenizer, 4, projected=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=SIDE,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            norm_num_groups=4,
            cross_attention_dim=12,
            attention_head_dim=2,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + POOLED,
        ).eval(),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        ),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


FAMILIES = {"Stable Diffusion": save_tiny_pipeline, "Stable Diffusion XL": save_tiny_xl}
