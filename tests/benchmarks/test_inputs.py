"""benchmarks/inputs.py: masks of the density asked for, and bytes counted by hand."""

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
        (dict(), (2, 3), 3 * 64 * 2 + 4 * (4 + 16)),
        (dict(beta1=0.0), (2, 3), 3 * 64 * 2 + 4 * (4 + 8)),
        (dict(masked=False), (3, 3), 3 * 64 * 3 + 40 * 16),
        # 32 to a line, and a master of 4 bytes under a mask.
        (dict(dtype=torch.bfloat16), (2, 2), 3 * 64 * 2 + 4 * (4 + 16 + 8)),
        (dict(dtype=torch.float16, masked=False), (2, 2), 3 * 64 * 2 + 40 * 16),
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
def test_masks_have_their_density(kind, density, monkeypatch):
    import inputs
    from presets import shapes

    named = shapes("tiny")
    total = sum(shape.numel() for shape in named.values())
    masks = inputs.make_masks(kind, named, density, "cpu")
    assert {name: mask.shape for name, mask in masks.items()} == named
    found = sum(int(mask.sum()) for mask in masks.values())
    # Heavy masks are counted exactly, random ones spread by their binomial deviation.
    spread = 5 * (density * (1 - density) * total) ** 0.5 if kind == "random" else 0.5
    assert abs(found - density * total) <= spread
    if kind == "heavy":  # a large network's threshold comes from a sample of the scores
        monkeypatch.setattr(inputs, "_SAMPLE", 20_000)
        masks = inputs.make_masks(kind, named, density, "cpu")
        sampled = sum(int(mask.sum()) for mask in masks.values())
        assert 0.8 * density < sampled / total < 1.2 * density


def test_heavy_masks_touch_fewer_lines():
    from inputs import make_input, touched_lines

    random, heavy = (make_input("tiny", torch.float32, m, 0.1, "cpu") for m in ("random", "heavy"))
    assert touched_lines(heavy)[0] < 0.5 * touched_lines(random)[0]


@pytest.mark.parametrize("mask", ["none", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_tensor_is_the_same_step(mask, dtype):
    """As many entries in as many lines; and after a step the same values."""
    from inputs import make_input, one_tensor, salient_entries, touched_lines
    from providers import ours

    case = make_input("tiny", dtype, mask, 0.1, "cpu")
    single = one_tensor(case)
    assert salient_entries(single) == salient_entries(case)
    if mask == "random":
        assert touched_lines(single)[0] == touched_lines(case)[0]
    ours(case, "reference").step()
    ours(single, "reference").step()
    again = one_tensor(case)
    assert torch.equal(again.params["all"], single.params["all"])
