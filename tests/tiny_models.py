"""Class-conditional networks small enough to sample in milliseconds."""

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel

from pecker_fast.models import ModelFolder

NAMES = ("circle", "square", "star")


def tiny_unet(num_classes=3, image_shape=(1, 8, 8)):
    """An untrained `UNet2DModel` for images (C, H, W), in eval mode."""
    channels, height, _ = image_shape
    return UNet2DModel(
        sample_size=height,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
        attention_head_dim=32,
        norm_num_groups=4,  # 8, one a channel, would take what the time and the class add away
        num_class_embeds=num_classes,
    ).eval()


def tiny_dit(num_classes=3, image_shape=(1, 8, 8), variance=False, **options):
    """An untrained DiT of diffusers for images (C, H, W), in eval mode; every tensor is random."""
    channels, height, _ = image_shape
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=channels,
        out_channels=2 * channels if variance else channels,
        num_layers=2,
        sample_size=height,
        patch_size=2,
        num_embeds_ada_norm=num_classes,
        **options,
    )
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.05 * torch.randn_like(param))
    return network.eval()


def tiny_scheduler():
    """DDPM's linear schedule of 1,000 steps."""
    return DDPMScheduler(1000, 1e-4, 0.02, "linear", prediction_type="epsilon", clip_sample=False)


def model_of_shapes(kind="teacher"):
    """The network as a `ModelFolder` of three classes; the same weights at each call."""
    torch.manual_seed(0)
    return ModelFolder(tiny_unet(), tiny_scheduler(), NAMES, kind=kind)
