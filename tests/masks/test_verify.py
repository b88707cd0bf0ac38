"""The bit-by-bit comparison of parameters before and after."""

import pytest
import torch

from pecker_fast.errors import FrozenChangedError, PeckerError
from pecker_fast.masks.verify import FrozenCheck, check_frozen


def test_counts_by_hand():
    before = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([[5.0, 6.0]])}
    after = {"a": torch.tensor([1.0, 2.5, 3.0, 4.5]), "b": torch.tensor([[5.0, 6.5]])}
    mask = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([[True, False]])}
    found = check_frozen(before, after, mask)
    assert found == FrozenCheck(3, 2, 3, 1, {"a": 1, "b": 1})
    assert found.to_dict() == {
        "frozen_parameters": 3,
        "frozen_changed": 2,
        "frozen_changed_in": {"a": 1, "b": 1},
        "salient_parameters": 3,
        "salient_changed": 1,
        "digests": {},
    }


def test_a_parameter_outside_the_mask_is_frozen():
    values = {"a": torch.ones(3), "b": torch.ones(2)}
    moved = {"a": torch.ones(3), "b": torch.zeros(2)}
    mask = {"a": torch.ones(3, dtype=torch.bool)}
    assert check_frozen(values, moved, mask) == FrozenCheck(2, 2, 3, 0, {"b": 2})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_bits_not_values(dtype):
    before = {"a": torch.tensor([0.0, float("nan"), 1.0], dtype=dtype)}
    after = {"a": torch.tensor([-0.0, float("nan"), 1.0], dtype=dtype)}
    assert check_frozen(before, after, {}) == FrozenCheck(3, 1, 0, 0, {"a": 1})


def test_the_smallest_change_counts():
    before = torch.full((4,), 1e3)
    after = before.clone()
    after[2] = torch.nextafter(after[2], torch.tensor(2e3))
    assert check_frozen({"a": before}, {"a": after}, {}).frozen_changed == 1


def test_memory_format_plays_no_part():
    before = torch.randn(2, 3, 4, 4)
    after = before.clone(memory_format=torch.channels_last)
    after[0, 1, 2, 3] += 1
    mask = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    assert check_frozen({"a": before}, {"a": after}, {"a": mask}).frozen_changed == 1
    mask[0, 1, 2, 3] = True
    assert check_frozen({"a": before}, {"a": after}, {"a": mask}).frozen_changed == 0


def test_what_changed_is_named():
    FrozenCheck(3, 0, 3, 1).require_unchanged("run")
    with pytest.raises(FrozenChangedError, match="run: 7 frozen entries of 'a', 'b' changed"):
        FrozenCheck(9, 7, 3, 1, {"a": 6, "b": 1}).require_unchanged("run")


@pytest.mark.parametrize(
    "after", [{"b": torch.ones(2)}, {"a": torch.ones(3)}, {"a": torch.ones(2).half()}]
)
def test_models_that_do_not_match(after):
    with pytest.raises(PeckerError, match=r"frozen check: parameter '[ab]'"):
        check_frozen({"a": torch.ones(2)}, after, {})
