"""Weights of torch-fidelity's Inception network in its own layout, drawn instead of trained."""

import io

import torch
from torch import nn

from pecker_fast.evaluate.fidelity import Inception

_load = Inception.load


def small_inception(path, device="cpu"):
    """`Inception.load` at an eighth of the work: 107 x 107 pixels instead of 299 x 299.

    And with 64 features, since the distance of 2,048 takes seconds.
    """
    inception = _load(path, device, layer="64")
    inception.network.INPUT_IMAGE_SIZE = 107
    return inception


def write_inception_weights(path):
    """Write a state dict that `FeatureExtractorInceptionV3` reads: 95 MB, seeded."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            """Stay as initialized."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    generator = torch.Generator().manual_seed(0)
    network = Untrained("untrained", ["2048"], feature_extractor_weights_path=nothing)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # torch's own start would let the activations die out
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
    network.fc.weight.normal_(0, 0.05, generator=generator)
    network.fc.bias.normal_(0, 1, generator=generator)
    torch.save(network.state_dict(), path)
    return path
