"""Training on real images: data sets, teachers and classifiers. Knows nothing of forgetting."""

DATASETS = ("cifar10", "stl10", "cifar10-format", "fashion-mnist")
"""What `load_images` knows by name; here, so that the command line needs no torch to list them."""
