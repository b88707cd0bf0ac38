"""The pages of docs/loops, run as they stand on models made here."""

import re
from pathlib import Path

import torch
from oracle import bits

from pecker_fast import SaliencyMask

FOLDER = Path(__file__).parents[2] / "docs" / "loops"


def blocks(page):
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (FOLDER / f"{page}.md").read_text(), flags=re.S)


def run(page, names, *numbers):
    """Run these blocks of a page, in this order, on these names; returns what is then there."""
    found = blocks(page)
    for number in numbers:
        exec(compile(found[number], f"{page}.md, block {number}", "exec"), names)
    return names


def saved_mask(model, density=0.3):
    """The file that the pages load."""
    mask = SaliencyMask.random(model, density, seed=3)
    mask.save("mask.safetensors")
    return mask


def copied(model):
    """Name -> a copy of the parameter."""
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def check(before, after, mask):
    """Frozen entries kept their bits; of the salient ones most have moved, in every tensor.

    Args:
        before: name -> parameter, from `copied`.
        after: likewise.
        mask: what may have moved.
    """
    assert before.keys() == after.keys()
    salient_moved = salient_all = 0
    for name, salient in mask.to_dense().items():
        moved = bits(before[name]) != bits(after[name])
        assert not moved[~salient].any(), f"frozen entries of {name} moved"
        salient_moved += int(moved.sum())
        salient_all += int(salient.sum())
    assert salient_moved > salient_all // 2, f"{salient_moved} of {salient_all} moved"


def assert_same(first, second):
    """Bit for bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(bits(value), bits(second[name])), name
