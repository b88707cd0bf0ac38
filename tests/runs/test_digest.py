"""A digest sees every bit, name, shape and type, and nothing else."""

import math

import pytest
import torch
from torch import nn

from pecker_fast.runs.digest import digest_of, fingerprint

BASE = {"a": torch.arange(4.0), "b": [1, 2.5, None, "x"], "c": {"d": True}}


@pytest.mark.parametrize(
    "other",
    [
        {**BASE, "a": torch.arange(4.0).nextafter(torch.tensor(9.0))},
        {**BASE, "a": torch.arange(4.0, dtype=torch.float64)},
        {**BASE, "a": torch.arange(4.0).view(2, 2)},
        {**BASE, "a": [0.0, 1.0, 2.0, 3.0]},
        {**BASE, "b": [1, 2.5, None, "x\nstr 'y'"]},
        {**BASE, "b": [1, 2.5, [None, "x"]]},
        {**BASE, "b": [1, math.nextafter(2.5, 3), None, "x"]},
        {**BASE, "b": [1.0, 2.5, None, "x"]},
        {**BASE, "c": {"d": 1}},
        {**BASE, "c": {"e": True}},
        {**BASE, "c": {}, "d": True},
    ],
    ids=range(11),
)
def test_differs(other):
    assert digest_of(other) != digest_of(BASE)


def test_signs_of_zero_and_bits_of_nan_count():
    nans = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert digest_of(torch.tensor(0.0)) != digest_of(torch.tensor(-0.0))
    assert digest_of(nans[0]) != digest_of(nans[1])
    assert digest_of(nans[0]) == digest_of(nans[0].clone())


def test_layout_and_saving_do_not_count(tmp_path):
    value = {**BASE, "t": (torch.randn(3, 4, dtype=torch.bfloat16).t(), torch.zeros(0, 2))}
    torch.save(value, tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert digest_of(loaded) == digest_of(value)
    contiguous = {**value, "t": [value["t"][0].contiguous(), value["t"][1]]}
    assert digest_of(contiguous) == digest_of(value)


def test_one_entry_of_any_stride():
    one = torch.empty_strided((1,), (0,)).fill_(5)
    assert digest_of(one) == digest_of(torch.tensor([5.0]))


def test_networks():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    assert fingerprint(first, first) == fingerprint(first)
    assert fingerprint(first, second) != fingerprint(second, first)
