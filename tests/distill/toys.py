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


def toy_objective(overrides=None, *, dtype=torch.float32, dropout=0.1, predict=None, seed=0):
    """An objective around a ToyDenoiser teacher: 4 classes, 1x8x8 images, a few small batches."""
    from pecker_fast.distill import ClassConditions, NoiseSchedule, Objective, load_config
    from pecker_fast.distill.networks import predict_noise

    torch.manual_seed(seed)
    settings = {
        "iterations": 6,
        "batch_size": 4,
        "generator.lr": 1e-3,
        "pseudo_score.lr": 1e-3,
        "generator.lambda_forget": 1.0,
        "mask.density": 0.3,
        "saliency.batches": 2,
        "saliency.batch_size": 4,
        "ema.decay": 0.9,
        "logging.every": 2,
        "logging.checkpoint_every": 3,
        **(overrides or {}),
    }
    config = load_config(None, settings)
    return Objective(
        ToyDenoiser(dropout=dropout).to(dtype),
        NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
        ClassConditions(config.forget, config.override, 4),
        config,
        (1, 8, 8),
        predict=predict or predict_noise,
    )


def assert_same_bits(left, right):
    """Compare two nested results exactly."""
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same_bits(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same_bits(a, b)
    else:
        assert left == right


def train(objective, **options):
    """Train to the end; returns the trainer and the metrics of all iterations."""
    from pecker_fast.distill import PeckerTrainer

    trainer = PeckerTrainer(objective, **options)
    return trainer, list(trainer.run())


def weights(network):
    """A copy of a network's parameters, by name."""
    return {name: p.detach().clone() for name, p in network.named_parameters()}
