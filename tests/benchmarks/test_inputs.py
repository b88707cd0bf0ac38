"""benchmarks/inputs.py: shapes as their names say, masks of the density asked for, bytes."""

import math

import pytest
import torch


def by_hand(dtype=torch.float32, masked=True, beta1=0.9):
    """40 entries; 1, 2, 9 and 35 are salient."""
    from inputs import StepInput

    param = torch.nn.Parameter(torch.zeros(40, dtype=dtype))
    param.grad = torch.ones_like(param)
    mask = torch.zeros(40, dtype=torch.bool)
    mask[[1, 2, 9, 35]] = True
    masks = {"p": mask} if masked else None
    return StepInput({"p": param}, masks, dtype, beta1)


@pytest.mark.parametrize(
    ("case", "lines", "floor"),
    [
        # 16 floats a line: the first and the last of three lines.
        (dict(), 2, 3 * 64 * 2 + 4 * (4 + 16)),
        (dict(beta1=0.0), 2, 3 * 64 * 2 + 4 * (4 + 8)),
        (dict(masked=False), 3, 3 * 64 * 3 + 40 * 16),
        # 32 to a line, and a master of 4 bytes under a mask.
        (dict(dtype=torch.bfloat16), 2, 3 * 64 * 2 + 4 * (4 + 16 + 8)),
        (dict(dtype=torch.float16, masked=False), 2, 3 * 64 * 2 + 40 * 16),
    ],
    ids=str,
)
def test_floor(case, lines, floor):
    from inputs import bytes_floor, touched_lines

    made = by_hand(**case)
    assert touched_lines(made) == lines
    assert bytes_floor(made) == floor


@pytest.mark.parametrize("beta1", [0.9, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_floor_counts_the_state_that_there_is(dtype, beta1):
    from inputs import bytes_floor
    from providers import ours

    case = by_hand(dtype, beta1=beta1)
    (state,) = ours(case, "reference").state.values()
    values = sum(4 * t.numel() for key, t in state.items() if key != "step")
    assert bytes_floor(case) == 3 * 64 * 2 + 4 * 4 + 2 * values


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("kind", ["random", "heavy"])
def test_masks_have_their_density(kind, density):
    import inputs

    named = inputs.shapes("tiny")
    total = sum(shape.numel() for shape in named.values())
    masks = inputs.make_masks(kind, named, density, "cpu")
    assert {name: mask.shape for name, mask in masks.items()} == named
    found = sum(int(mask.sum()) for mask in masks.values())
    # Heavy masks are counted exactly, random ones spread by their binomial deviation.
    spread = 5 * (density * (1 - density) * total) ** 0.5 if kind == "random" else 0.5
    assert abs(found - density * total) <= spread


def test_heavy_masks_touch_fewer_lines():
    from inputs import make_input, touched_lines

    random, heavy = (make_input("tiny", torch.float32, m, 0.1, "cpu") for m in ("random", "heavy"))
    assert touched_lines(heavy) < 0.5 * touched_lines(random)


# Parameters and tensors.
SIZES = {
    "tiny": (100_498, 6),
    "ddpm_cifar10": (35_751_939, 329),
    "ddpm_stl10": (78_706_435, 391),
    "sd15": (859_520_964, 686),
    "sdxl": (2_567_463_684, 1_680),
}


def test_every_preset_has_its_size():
    from inputs import PRESETS, shapes

    for preset in PRESETS:
        found = shapes(preset)
        assert (sum(map(math.prod, found.values())), len(found)) == SIZES[preset]


@pytest.mark.parametrize("preset", ["sd15", "sdxl"])
def test_the_files_are_what_diffusers_makes(preset):
    pytest.importorskip("diffusers")
    from inputs import shapes
    from networks import NETWORKS

    with torch.device("meta"):  # no weights, no memory, no download
        network = NETWORKS[preset].make()
    made = {name: param.shape for name, param in network.named_parameters()}
    assert list(made.items()) == list(shapes(preset).items())
