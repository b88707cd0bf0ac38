"""ResNet-34, the classifier that published figures of unlearning accuracy come from.

The network of "Deep Residual Learning for Image Recognition" (arXiv 1512.03385, Table 1 and Figure
5 left) under the parameter names of torchvision's `resnet34`, so that ImageNet weights load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier_files import (
    build_network,
    fill_weights,
    read_config,
    save_network,
)

__all__ = ["ARCH", "ResNetClassifier"]

ARCH = "resnet34"
_BLOCKS = (3, 4, 6, 3)
_AT_ONCE = 100  # images, outside training: at 224 pixels their activations need 1 GB


class ResNetClassifier(nn.Module):
    """ResNet-34: images in [-1, 1] to logits, with the 8 x width pooled features before them.

    Args:
        num_classes: number of classes.
        in_channels: 3, or 1 for grey images, which the network sees in three equal channels.
        width: channels of the first stage; doubled at each of the three others.
        stem: "imagenet": 7x7 convolution of stride 2 and max pooling of stride 2, for large images;
            "cifar": one 3x3 convolution of stride 1, for small ones.
        input_size: side in pixels that images are resized to first (bilinear, antialiased); None:
            they stay as they are.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        input_size: int | None = 224,
    ) -> None:
        super().__init__()
        if num_classes < 1 or width < 1:
            raise PeckerError(
                "ResNetClassifier: num_classes and width must be at least 1, got "
                f"{num_classes} and {width}"
            )
        if in_channels not in (1, 3):
            raise PeckerError(
                f"ResNetClassifier: images must have 1 or 3 channels, got {in_channels}"
            )
        if stem not in ("imagenet", "cifar"):
            raise PeckerError(f"ResNetClassifier: stem must be imagenet or cifar, got {stem!r}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.width = width
        self.stem = stem
        self.input_size = input_size
        large = stem == "imagenet"
        size, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        self.conv1 = nn.Conv2d(3, width, size, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        channels = width
        for stage, blocks in enumerate(_BLOCKS):
            out = width * 2**stage
            layers = [_Block(channels, out, 1 if stage == 0 else 2)]
            layers += [_Block(out, out, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            channels = out
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # arXiv 1502.01852, as section 3.4 of the paper says
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [-1, 1] to features (N, 8 * width)."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise PeckerError(
                f"classifier: images must be (N, {self.in_channels}, H, W), "
                f"got {tuple(images.shape)}"
            )
        if self.training or len(images) <= _AT_ONCE:
            return self._features(images)
        return torch.cat([self._features(part) for part in torch.split(images, _AT_ONCE)])

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [-1, 1] to logits (N, num_classes)."""
        return self.logits_and_features(images)[0]

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to (logits, features) in one pass."""
        features = self.features(images)
        logits: Tensor = self.fc(features)
        return logits, features

    def start_from(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Take over the weights of torchvision's `resnet34`, except for the last layer.

        Raises:
            PeckerError: they are of another network, or this one is not of the published size.
        """
        own = self.state_dict()
        # Older weight files do not count batches; nothing here reads that number.
        ours, given = (
            {
                n: v
                for n, v in values.items()
                if not n.startswith("fc.") and not n.endswith("_tracked")
            }
            for values in (own, weights)
        )
        for name in sorted(ours.keys() ^ given.keys()):
            where = "is missing" if name in ours else "is none of ResNet-34's"
            raise PeckerError(
                f"{source}: {name!r} {where}; expected the state dict of torchvision's resnet34"
            )
        for name, value in given.items():
            if not isinstance(value, Tensor) or value.shape != ours[name].shape:
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise PeckerError(
                    f"{source}: {name!r} must be {tuple(ours[name].shape)}, got {found}; "
                    "torchvision's resnet34 has width 64 and the stem for ImageNet"
                )
        self.load_state_dict(dict(given), strict=False)

    @classmethod
    def published(cls, weights: Mapping[str, Tensor], source: str) -> ResNetClassifier:
        """The classifier whose state dict train_classifier.py of SA, SalUn and SFD saves.

        That is torchvision's `resnet34` with a last layer of its own, which sees what this class
        shows it by default: images resized to 224 pixels, in [-1, 1]. In eval mode, without
        gradients.

        Args:
            weights: by name, without prefixes.
            source: names them in errors.

        Raises:
            PeckerError: they are of another network.
        """
        weight, bias = weights.get("fc.weight"), weights.get("fc.bias")
        found = [None if value is None else tuple(value.shape) for value in (weight, bias)]
        classes = found[1][0] if found[1] else 0
        if weight is None or bias is None or not classes or found != [(classes, 512), (classes,)]:
            raise PeckerError(
                f"{source}: 'fc.weight' and 'fc.bias' must be (classes, 512) and (classes,), got "
                f"{found[0]} and {found[1]}; expected the state dict of torchvision's resnet34"
            )
        classifier = cls(classes)
        classifier.start_from(weights, source)
        classifier.fc.load_state_dict({"weight": weight, "bias": bias})
        return classifier.eval().requires_grad_(False)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into `folder`, which is made if need be."""
        config = {
            "arch": ARCH,
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "width": self.width,
            "stem": self.stem,
            "input_size": self.input_size,
        }
        save_network(self, config, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ResNetClassifier:
        """Read what `save` wrote; the result is in eval mode and asks for no gradients.

        Raises:
            PeckerError: a file is missing, truncated, or does not fit the configuration.
        """
        folder = Path(folder)
        config = read_config(folder, cls.__name__)
        arch = config.pop("arch", None)
        if arch != ARCH:
            raise PeckerError(f"classifier {folder}: arch must be {ARCH}, got {arch!r}")
        return fill_weights(build_network(cls, config, folder), folder)

    def _features(self, images: Tensor) -> Tensor:
        size = self.input_size
        if size is not None and images.shape[2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        x: Tensor = self.pool(F.relu(self.bn1(self.conv1(images.expand(-1, 3, -1, -1)))))
        for stage in range(len(_BLOCKS)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean((2, 3))


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + shortcut)
