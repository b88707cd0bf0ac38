"""benchmarks/shapes/*.json are the shapes of the networks that they are named after."""

import math

import pytest

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

    with pytest.raises(KeyError, match="no preset 'sd3': expected one of tiny, ddpm_cifar10"):
        shapes("sd3")


@pytest.mark.parametrize("preset", ["ddpm_cifar10", "ddpm_stl10", "sd15", "sdxl"])
def test_the_files_are_what_diffusers_makes(preset):
    pytest.importorskip("diffusers")
    from make_shapes import CONFIGS, shapes_of
    from presets import PRESETS, shapes

    assert set(CONFIGS) | {"tiny"} == set(PRESETS)
    made = shapes_of(preset)
    assert list(made.items()) == [(name, list(shape)) for name, shape in shapes(preset).items()]
