"""Real images: CIFAR-10, STL-10 and Fashion-MNIST from their own files."""

DATASETS = ("cifar10", "stl10", "cifar10-format", "fashion-mnist")
"""What `loading` knows by name; here, so that the command line needs no torch to list them."""
