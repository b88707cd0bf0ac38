"""Real images: CIFAR-10, STL-10 and Fashion-MNIST from their own files, and images of one's own."""

from typing import Literal, TypeAlias, get_args

Dataset: TypeAlias = Literal["cifar10", "stl10", "fashion-mnist", "images"]
"""What `loading` knows by name; here, so that the command line needs no torch to list them."""

DATASETS: tuple[Dataset, ...] = get_args(Dataset)

PUBLISHED_SPLIT = {"stl10": "all"}
"""The real images behind published figures: training images, and of STL-10 the test images too."""
