"""Small networks that answer like a noise predictor, for the tests of the distillation."""

import torch
from torch import nn


class ToyDenoiser(nn.Module):
    """Class- and time-conditional, convolutional and smooth, with a norm and dropout."""

    def __init__(self, channels=1, width=8, num_classes=4, dropout=0.1):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.classes = nn.Embedding(num_classes, width)
        self.time = nn.Linear(1, width)
        self.norm = nn.GroupNorm(2, width)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, t, condition):
        embedding = self.classes(condition) + self.time(t[:, None].to(x.dtype) / 1000)
        h = self.conv_in(x) + embedding[:, :, None, None]
        return self.conv_out(self.dropout(torch.tanh(self.norm(h))))


def tiny_unet(num_classes=4):
    """The smallest diffusers UNet2DModel that still has attention-free blocks on two levels."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        dropout=0.1,
        num_class_embeds=num_classes,
    )
