"""benchmarks/shapes/*.json are the shapes of the networks that they are named after."""

import math

import pytest
import torch

# Parameters and tensors.
SIZES = {
    "tiny": (100_498, 6),
    "ddpm_cifar10": (35_751_939, 329),
    "ddpm_stl10": (78_706_435, 391),
    "sd15": (859_520_964, 686),
    "sdxl": (2_567_463_684, 1_680),
}


def test_every_preset_has_its_size():
    from presets import PRESETS, shapes

    for preset in PRESETS:
        found = shapes(preset)
        assert (sum(map(math.prod, found.values())), len(found)) == SIZES[preset]


def test_an_unknown_preset_is_named():
    from presets import shapes

    with pytest.raises(KeyError, match="sd3"):
        shapes("sd3")


@pytest.mark.parametrize("preset", ["sd15", "sdxl"])
def test_the_files_are_what_diffusers_makes(preset):
    pytest.importorskip("diffusers")
    from networks import unet
    from presets import shapes

    with torch.device("meta"):  # no weights, no memory, no download
        made = {name: param.shape for name, param in unet(preset).named_parameters()}
    assert list(made.items()) == list(shapes(preset).items())
