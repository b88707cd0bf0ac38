"""The class-conditional DDPM U-Net of SA, SalUn, SFD and EraseDiff, under their state-dict names.

What sets it apart from diffusers' `UNet2DModel`: time and class go through a small network each,
and every residual block projects the concatenation of both; "no class" is a learned vector beside
the class table; attention uses 1x1 convolutions. `published` reads the checkpoints of those
repositories into it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from pecker_fast.errors import PeckerError

__all__ = ["AttentionBlock", "DDPMUNet", "ResidualBlock"]

_EPS = 1e-6
_LONGEST_PERIOD = 10_000  # of the time embedding, in steps / 2 pi
_INT32_ELEMENTS = 2**31


class DDPMUNet(ModelMixin, ConfigMixin):
    """Noise predictor: `network(x, t, labels).sample`, called as `UNet2DModel` is.

    Label `num_classes` means "no class": the learned null vector. A network without one
    (`null_class=False`) has no such label.

    Args:
        sample_size: height and width of the images in pixels; each level but the last halves it.
        in_channels: of the images and of the predicted noise.
        num_classes: classes, "no class" not counted.
        channels: base width, 128 as published; both embeddings are four times as wide.
        channel_mult: width of each level in units of `channels`, the finest level first.
        attention_levels: levels whose blocks are followed by attention, besides the middle; as
            published, the one of 16x16 pixels.
        blocks_per_level: residual blocks of a level on the way down; one more on the way up.
        norm_num_groups: groups of every group norm.
        dropout: in every residual block, in train mode.
        null_class: whether there is a null vector.

    Raises:
        PeckerError: sizes that do not divide, or no level.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        num_classes: int = 10,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        attention_levels: Sequence[int] = (1,),
        blocks_per_level: int = 2,
        norm_num_groups: int = 32,
        dropout: float = 0.1,
        null_class: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(sample_size, channels, channel_mult, attention_levels, norm_num_groups)
        block = {
            "embedding_channels": 8 * channels,
            "groups": norm_num_groups,
            "dropout": dropout,
        }
        self.temb = _EmbeddingNetwork(channels)
        self.classes_emb = nn.Embedding(num_classes, channels)
        self.null_classes_emb = nn.Parameter(torch.randn(channels)) if null_class else None
        self.cemb = _EmbeddingNetwork(channels)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)

        widths = [channels * factor for factor in channel_mult]
        last = len(widths) - 1
        # Channels of each activation that the way up takes over, in the order they are made.
        skips = [channels]
        self.down = nn.ModuleList()
        width = channels
        for level, out in enumerate(widths):
            inputs = [width, *[out] * (blocks_per_level - 1)]
            attends = level in attention_levels
            self.down.append(_DownLevel(inputs, out, attends, halves=level < last, **block))
            width = out
            skips += [out] * (blocks_per_level + (level < last))

        self.mid = _Middle(width, **block)

        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            inputs = [
                width + skips.pop(),
                *[out + skips.pop() for _ in range(blocks_per_level)],
            ]
            attends = level in attention_levels
            # Made from the coarsest on, numbered from the finest on.
            self.up.insert(0, _UpLevel(inputs, out, attends, doubles=level > 0, **block))
            width = out

        self.norm_out = nn.GroupNorm(norm_num_groups, width, eps=_EPS)
        self.act_out = nn.SiLU()
        self.conv_out = nn.Conv2d(width, in_channels, 3, padding=1)

    @classmethod
    def cifar10(cls) -> DDPMUNet:
        """The published network for CIFAR-10: 38,632,323 parameters in 334 tensors."""
        return cls()

    @classmethod
    def stl10(cls) -> DDPMUNet:
        """The published network for STL-10 at 64x64: 83,159,683 parameters in 396 tensors."""
        return cls(sample_size=64, channel_mult=(1, 2, 2, 2, 4), attention_levels=(2,))

    @property
    def num_classes(self) -> int:
        """Classes, "no class" not counted."""
        return self.classes_emb.num_embeddings

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", one behind the last class; None: there is none."""
        return None if self.null_classes_emb is None else self.num_classes

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise in a batch.

        Args:
            sample: (N, C, H, W) noisy images in the network's dtype.
            timestep: (N,) or a single one for the whole batch.
            class_labels: (N,) int64 in [0, `num_classes`), or `null_label`.
            return_dict: False = a tuple, as diffusers' networks give.

        Returns:
            An object whose `sample` is the noise, (N, C, H, W).

        Raises:
            PeckerError: no labels.
        """
        if class_labels is None:
            raise PeckerError(
                f"DDPMUNet needs class_labels, got None; the label of no class is {self.null_label}"
            )
        embedding = self._embed(sample, timestep, class_labels)
        hidden = self.conv_in(sample)
        skips = [hidden]
        for level in self.down:
            skips += level(skips[-1], embedding)
        hidden = self.mid(skips[-1], embedding)
        for level in reversed(self.up):
            hidden = level(hidden, skips, embedding)
        noise: Tensor = self.conv_out(self.act_out(self.norm_out(hidden)))
        return UNet2DOutput(sample=noise) if return_dict else (noise,)

    def _embed(self, sample: Tensor, timestep: Tensor | float, labels: Tensor) -> Tensor:
        """(N, 8 * channels), activated: every residual block would do that to it first."""
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        classes = self.classes_emb.weight
        waves = _time_waves(t, classes.shape[1], classes.dtype)
        if self.null_classes_emb is not None:
            classes = torch.cat([classes, self.null_classes_emb[None]])
        both = torch.cat([self.temb(waves), self.cemb(F.embedding(labels, classes))], dim=1)
        return F.silu(both)


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution; plus the projected embedding; norm, SiLU, dropout, convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temb_cemb_proj = nn.Linear(embedding_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=_EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        """The block on concat(x, skip).

        Args:
            x: (N, C1, H, W).
            embedding: (N, D) of time and class, activated.
            skip: (N, C2, H, W) from the way down.

        Returns:
            (N, C_out, H, W).
        """
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.temb_cemb_proj(embedding)[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        return x + hidden


class AttentionBlock(nn.Module):
    """Attention of an image's pixels to each other, in one head, with a residual around it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        normed = self.norm(x)
        # (N, 1, H*W, C): one head.
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        projected: Tensor = self.proj_out(attended.transpose(1, 2).reshape(x.shape))
        return x + projected


class _EmbeddingNetwork(nn.Module):
    """Two linear layers that make an embedding four times as wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.dense = nn.ModuleList([nn.Linear(channels, wide), nn.Linear(wide, wide)])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) to (N, 4 C)."""
        first, second = self.dense
        embedding: Tensor = second(F.silu(first(x)))
        return embedding


class _Downsample(nn.Module):
    """A convolution of stride 2; the image is padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H/2, W/2)."""
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return halved


class _Upsample(nn.Module):
    """Every pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 2 H, 2 W)."""
        # torch's channels_last kernel counts in 32 bits in some of the supported versions.
        if 4 * x.numel() >= _INT32_ELEMENTS:
            x = x.contiguous()
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class _Level(nn.Module):
    """The residual blocks of one resolution, each with an attention behind it or none."""

    def __init__(self, inputs: Sequence[int], out: int, attends: bool, **block: Any) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(width, out, **block) for width in inputs)
        self.attn = nn.ModuleList(AttentionBlock(out, block["groups"]) for _ in inputs if attends)

    def apply_block(
        self, index: int, hidden: Tensor, embedding: Tensor, skip: Tensor | None = None
    ) -> Tensor:
        """One residual block, and its attention."""
        hidden = self.block[index](hidden, embedding, skip)
        return self.attn[index](hidden) if len(self.attn) else hidden


class _DownLevel(_Level):
    def __init__(
        self, inputs: Sequence[int], out: int, attends: bool, *, halves: bool, **block: Any
    ) -> None:
        super().__init__(inputs, out, attends, **block)
        self.downsample = _Downsample(out) if halves else None

    def forward(self, hidden: Tensor, embedding: Tensor) -> list[Tensor]:
        """Every activation that the way up takes over; the last is the next level's input."""
        made = []
        for index in range(len(self.block)):
            hidden = self.apply_block(index, hidden, embedding)
            made.append(hidden)
        if self.downsample is not None:
            made.append(self.downsample(hidden))
        return made


class _UpLevel(_Level):
    def __init__(
        self, inputs: Sequence[int], out: int, attends: bool, *, doubles: bool, **block: Any
    ) -> None:
        super().__init__(inputs, out, attends, **block)
        self.upsample = _Upsample(out) if doubles else None

    def forward(self, hidden: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Takes what it needs from the end of `skips`."""
        for index in range(len(self.block)):
            hidden = self.apply_block(index, hidden, embedding, skips.pop())
        return hidden if self.upsample is None else self.upsample(hidden)


class _Middle(nn.Module):
    def __init__(self, channels: int, **block: Any) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, **block)
        self.attn_1 = AttentionBlock(channels, block["groups"])
        self.block_2 = ResidualBlock(channels, channels, **block)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        hidden = self.attn_1(self.block_1(hidden, embedding))
        hidden = self.block_2(hidden, embedding)
        return hidden


def _time_waves(t: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Sines, then cosines of (N,) time steps in `channels` / 2 frequencies, (N, `channels`).

    In float32 as published, but for a float64 network.
    """
    accurate = torch.float64 if dtype == torch.float64 else torch.float32
    half = channels // 2
    exponents = torch.arange(half, dtype=accurate, device=t.device)
    frequencies = torch.exp(exponents * (-math.log(_LONGEST_PERIOD) / (half - 1)))
    phases = t.to(accurate)[:, None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=1).to(dtype)


def _check_sizes(
    sample_size: int,
    channels: int,
    channel_mult: Sequence[int],
    attention_levels: Sequence[int],
    groups: int,
) -> None:
    levels = len(channel_mult)
    if not levels:
        raise PeckerError("DDPMUNet: channel_mult must name at least one level, got none")
    if sample_size % 2 ** (levels - 1):
        raise PeckerError(
            f"DDPMUNet: sample_size {sample_size} cannot be halved {levels - 1} times, which "
            f"{levels} levels need"
        )
    if channels < 4 or channels % 2:
        raise PeckerError(f"DDPMUNet: channels must be even and at least 4, got {channels}")
    for width in (channels, *(channels * factor for factor in channel_mult)):
        if width < 1 or width % groups:
            raise PeckerError(
                f"DDPMUNet: a level of {width} channels does not divide into {groups} groups; "
                "set norm_num_groups"
            )
    strange = [level for level in attention_levels if not 0 <= level < levels]
    if strange:
        raise PeckerError(
            f"DDPMUNet: attention_levels must lie in [0, {levels}), got {list(attention_levels)}"
        )
