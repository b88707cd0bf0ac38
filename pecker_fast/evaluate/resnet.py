"""ResNet-34, the classifier that published figures of unlearning accuracy come from.

torchvision's blocks under the names of its `resnet34`, so that ImageNet weights load; with a stem
for small images too, and in other widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.classifier_files import SavedClassifier, check_sizes

__all__ = ["ResNetClassifier"]

_BLOCKS = (3, 4, 6, 3)
_WANTED = (
    "expected the state dict of torchvision's resnet34, of width 64 and with the stem for ImageNet"
)
_AT_ONCE = 100  # images, outside training: at 224 pixels their activations need 1 GB


class ResNetClassifier(SavedClassifier):
    """ResNet-34: images in [-1, 1] to logits, with the 8 x width pooled features before them.

    Args:
        num_classes: number of classes.
        in_channels: 3, or 1 for grey images, which the network sees in three equal channels.
        width: channels of the first stage; doubled at each of the three others.
        stem: "imagenet": 7x7 convolution of stride 2 and max pooling of stride 2, for large images;
            "cifar": one 3x3 convolution of stride 1, for small ones.
        input_size: side in pixels that images are resized to first (bilinear, antialiased); None:
            they stay as they are.

    Raises:
        PeckerError: an argument is out of range.
    """

    arch: ClassVar[str | None] = "resnet34"

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        input_size: int | None = 224,
    ) -> None:
        check_sizes(self, num_classes=num_classes, width=width)
        if input_size is not None:
            check_sizes(self, input_size=input_size)
        if in_channels not in (1, 3):
            raise PeckerError(
                f"ResNetClassifier: images must have 1 or 3 channels, got {in_channels}"
            )
        if stem not in ("imagenet", "cifar"):
            raise PeckerError(f"ResNetClassifier: stem must be imagenet or cifar, got {stem!r}")
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            width=width,
            stem=stem,
            input_size=input_size,
        )
        from torchvision.models.resnet import BasicBlock, conv1x1

        self.input_size = input_size
        large = stem == "imagenet"
        size, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        self.conv1 = nn.Conv2d(3, width, size, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        channels = width
        for stage, blocks in enumerate(_BLOCKS):
            out, stride = width * 2**stage, min(stage, 1) + 1
            shortcut = None
            if stage:
                shortcut = nn.Sequential(conv1x1(channels, out, stride), nn.BatchNorm2d(out))
            layers = [BasicBlock(channels, out, stride, shortcut)]
            layers += [BasicBlock(out, out) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            channels = out
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision does
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def early(self) -> nn.Module:
        """The third of four stages: 4 * width channels."""
        return self.get_submodule("layer3")

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to logits and pooled features (N, 8 * width); see `SavedClassifier`."""
        self.check(images)
        if self.training or len(images) <= _AT_ONCE:
            features = self._features(images)
        else:
            parts = torch.split(images, _AT_ONCE)
            features = torch.cat([self._features(part) for part in parts])
        logits: Tensor = self.fc(features)
        return logits, features

    def start_from(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Take over the weights of torchvision's `resnet34`, except for the last layer.

        Raises:
            PeckerError: they are of another network, or this one is not of the published size.
        """
        head = {f"fc.{name}": value for name, value in self.fc.state_dict().items()}
        self._take({**weights, **head}, source)

    @classmethod
    def published(cls, weights: Mapping[str, Tensor], source: str) -> ResNetClassifier:
        """The classifier whose state dict train_classifier.py of SA, SalUn and SFD saves.

        That is torchvision's `resnet34` with a last layer of its own, which sees what this class
        shows it by default: images resized to 224 pixels, in [-1, 1]. In eval mode, without
        gradients.

        Raises:
            PeckerError: they are of another network.
        """
        bias = weights.get("fc.bias")
        shape = tuple(bias.shape) if isinstance(bias, Tensor) else ()
        if len(shape) != 1 or not shape[0]:
            raise PeckerError(f"{source}: 'fc.bias' must be (classes,), got {shape}; {_WANTED}")
        classifier = cls(shape[0])
        classifier._take(weights, source)
        return classifier.eval().requires_grad_(False)

    def _take(self, weights: Mapping[str, Tensor], source: str) -> None:
        # Older weight files do not count batches; nothing here reads that number.
        given = {name: value for name, value in weights.items() if not name.endswith("_tracked")}
        try:
            found = self.load_state_dict(given, strict=False)
        except RuntimeError as error:  # other shapes, each in a line of its own
            reason = str(error).splitlines()[1].strip().rstrip(".")
            raise PeckerError(f"{source}: {reason}; {_WANTED}") from error
        missing = [name for name in found.missing_keys if not name.endswith("_tracked")]
        for names, where in ((missing, "is missing"), (found.unexpected_keys, "is none of its")):
            if names:
                raise PeckerError(f"{source}: {names[0]!r} {where}; {_WANTED}")

    def _features(self, images: Tensor) -> Tensor:
        size = self.input_size
        if size is not None and images.shape[2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        x: Tensor = self.pool(F.relu(self.bn1(self.conv1(images.expand(-1, 3, -1, -1)))))
        for stage in range(len(_BLOCKS)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean((2, 3))
