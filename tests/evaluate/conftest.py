"""A model small enough to sample in milliseconds."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from pecker_fast.models import ModelFolder


@pytest.fixture
def tiny_model():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
        norm_num_groups=4,
        num_class_embeds=3,
    ).eval()
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
    return ModelFolder(unet, scheduler, ("circle", "square", "star"))
