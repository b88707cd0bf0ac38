"""Random pipelines of every family that is known, small enough to draw in milliseconds."""

import json
import string

import torch
from diffusers import (
    AutoencoderDC,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_pipeline import (
    CHANNELS,
    LENGTH,
    SIDE,
    clip_config,
    letters,
    save_tiny_pipeline,
    saved,
    tiny_vae,
)
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

POOLED = 6


def clip(tokenizer, width, projected=False):
    """A CLIP text encoder of that width."""
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(clip_config(tokenizer, width, num_hidden_layers=2, projection_dim=POOLED)).eval()


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
    return saved(pipeline, folder)


def t5():
    """A tokenizer that spells, and T5's encoder of width 16."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocabulary += [(letter, -3.0) for letter in string.ascii_lowercase]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return tokenizer, T5EncoderModel(config).eval()


def save_tiny_3(folder, with_t5=True):
    """Stable Diffusion 3, also without T5, as many have it."""
    torch.manual_seed(8)
    tokenizer = letters(folder / "letters")
    long_tokenizer, long_encoder = t5()
    pipeline = StableDiffusion3Pipeline(
        vae=tiny_vae(shift=0.1),
        text_encoder=clip(tokenizer, 8, projected=True),
        text_encoder_2=clip(tokenizer, 4, projected=True),
        text_encoder_3=long_encoder if with_t5 else None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=long_tokenizer if with_t5 else None,
        transformer=SD3Transformer2DModel(
            sample_size=SIDE,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=8,
            pooled_projection_dim=2 * POOLED,
            pos_embed_max_size=8,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return saved(pipeline, folder)


def save_tiny_flux(folder):
    """FLUX.1."""
    torch.manual_seed(8)
    tokenizer = letters(folder / "letters")
    long_tokenizer, long_encoder = t5()
    pipeline = FluxPipeline(
        vae=tiny_vae(shift=0.1),
        text_encoder=clip(tokenizer, 8),
        text_encoder_2=long_encoder,
        tokenizer=tokenizer,
        tokenizer_2=long_tokenizer,
        transformer=FluxTransformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
    )
    saved(pipeline, folder)
    (folder / "pecker_fast.json").write_text(json.dumps({"sample_size": SIDE}))
    return pipeline


def save_tiny_pixart(folder):
    """PixArt-alpha, of 1,024 pixels as far as its network knows."""
    torch.manual_seed(8)
    tokenizer, encoder = t5()
    pipeline = PixArtAlphaPipeline(
        vae=tiny_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=PixArtTransformer2DModel(
            sample_size=SIDE,
            in_channels=CHANNELS,
            out_channels=2 * CHANNELS,
            num_layers=2,
            attention_head_dim=12,
            num_attention_heads=2,
            cross_attention_dim=24,
            caption_channels=16,
            norm_num_groups=4,
        ).eval(),
        scheduler=DDIMScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False
        ),
    )
    return saved(pipeline, folder)


def gemma():
    """A tokenizer that spells behind a first token, and Gemma 2's layers of width 16."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *string.ascii_lowercase]
    tokenizer = GemmaTokenizer(vocab={name: index for index, name in enumerate(names)})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    return tokenizer, Gemma2Model(config).eval()


def save_tiny_sana(folder):
    """SANA."""
    torch.manual_seed(8)
    tokenizer, encoder = gemma()
    pipeline = SanaPipeline(
        vae=AutoencoderDC(
            latent_channels=CHANNELS,
            attention_head_dim=2,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            scaling_factor=0.7,
        ).eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=SanaTransformer2DModel(
            sample_size=SIDE,
            in_channels=CHANNELS,
            out_channels=2 * CHANNELS,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            timestep_scale=0.5,
        ).eval(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return saved(pipeline, folder)


FAMILIES = {
    "Stable Diffusion": save_tiny_pipeline,
    "Stable Diffusion XL": save_tiny_xl,
    "Stable Diffusion 3": save_tiny_3,
    "FLUX.1": save_tiny_flux,
    "PixArt": save_tiny_pixart,
    "SANA": save_tiny_sana,
}
