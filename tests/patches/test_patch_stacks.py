"""Several patches on one network: in any order where they are disjoint, the last one wins else."""

from __future__ import annotations

import copy

import pytest
import torch
from patch_networks import content, erased_from, mask_of, network, where
from torch import nn

from pecker_fast import apply_patch, remove_patch, save_patch
from pecker_fast.errors import PeckerError
from pecker_fast.patches.files import read_patch
from pecker_fast.patches.patch import overlap_of


@pytest.fixture
def stack(tmp_path):
    """Three patches of one base: b and c overlap with a, and not with each other."""
    base = network()
    places = {
        "a": {"head.weight": [0, 1, 2, 3], "conv_in.weight": [7, 9], "scale": [0]},
        "b": {"head.weight": [2, 3, 4], "down_blocks.0.weight": [100]},
        "c": {"conv_in.weight": [9], "head.weight": [50]},
    }
    erased, files = {}, {}
    for seed, (name, places_of_it) in enumerate(places.items()):
        mask = where(base, places_of_it)
        erased[name] = erased_from(base, mask, seed + 10)
        files[name] = tmp_path / f"{name}.safetensors"
        save_patch(files[name], base, erased[name], mask)
    return base, places, erased, files


def laid_over(base, places, erased, order):
    """The oracle: entry by entry, the last patch's value."""
    result = copy.deepcopy(base)
    for patch in order:
        source = dict(erased[patch].named_parameters())
        for name, parameter in result.named_parameters():
            for position in places[patch].get(name, []):
                target = parameter.detach().view(-1).view(torch.int32)
                target[position] = source[name].detach().view(-1).view(torch.int32)[position]
    return content(result)


@pytest.mark.parametrize("order", ["bc", "cb"])
def test_disjoint_patches_in_any_order(stack, order):
    base, places, erased, files = stack
    subject = copy.deepcopy(base)
    assert apply_patch(subject, files[order[0]]) == []
    (found,) = apply_patch(subject, files[order[1]])
    assert (found.entries, found.share, found.blocks) == (0, 0.0, {})
    assert content(subject) == laid_over(base, places, erased, "bc")
    assert laid_over(base, places, erased, "bc") == laid_over(base, places, erased, "cb")
    remove_patch(subject, files["b"])
    assert content(subject) == content(erased["c"])
    remove_patch(subject, files["c"])
    assert content(subject) == content(base)


def test_overlap_is_refused_and_reported(stack):
    base, _, erased, files = stack
    subject = copy.deepcopy(base)
    apply_patch(subject, files["a"])
    expected = (
        r"b\.safetensors' overlaps .*: 2 entries \(50\.0%\) are in '.*a\.safetensors' too: head 2\."
        r" With overlap='last' they take this patch's values"
    )
    with pytest.raises(PeckerError, match=expected):
        apply_patch(subject, files["b"])
    assert content(subject) == content(erased["a"])
    (found,) = apply_patch(subject, files["b"], overlap="last")
    assert (found.entries, found.share, found.blocks) == (2, 0.5, {"head": 2})
    assert found.file.endswith("a.safetensors")


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
@pytest.mark.parametrize("process", ["the same", "another"])
def test_the_last_patch_wins_and_any_can_be_removed(stack, order, process):
    base, places, erased, files = stack
    for taken_off in order:
        subject = copy.deepcopy(base)
        for count, name in enumerate(order):
            beneath = [files[other] for other in order[:count]]
            overlaps = apply_patch(subject, files[name], applied=beneath, overlap="last")
            assert [found.file for found in overlaps] == [str(file) for file in beneath]
        assert content(subject) == laid_over(base, places, erased, order)
        if process == "another":
            weights = subject.state_dict()
            subject = network(seed=9)
            subject.load_state_dict(weights)
            with pytest.raises(PeckerError, match="name the patches that the network carries"):
                remove_patch(subject, files[taken_off])
            remove_patch(subject, files[taken_off], applied=[files[name] for name in order])
        else:
            remove_patch(subject, files[taken_off])
        left = order.replace(taken_off, "")
        assert content(subject) == laid_over(base, places, erased, left)
        for name in left:
            remove_patch(subject, files[name])
        assert content(subject) == content(base)


def test_a_stack_in_the_wrong_order_is_refused(stack):
    base, _, _, files = stack
    apply_patch(base, files["a"])
    apply_patch(base, files["b"], overlap="last")
    before = content(base)
    expected = r"this network without '.*b\.safetensors', '.*a\.safetensors' differ"
    with pytest.raises(PeckerError, match=expected):
        apply_patch(base, files["c"], applied=[files["b"], files["a"]])
    with pytest.raises(PeckerError, match=r"first 'down_blocks\.0\.weight'"):
        remove_patch(base, files["a"], applied=[files["a"]])
    assert content(base) == before


def test_patches_of_different_bases_do_not_stack(stack, tmp_path):
    base, _, _, files = stack
    changed = network(seed=5)
    file = tmp_path / "other.safetensors"
    mask = mask_of(changed)
    save_patch(file, changed, erased_from(changed, mask), mask)
    apply_patch(base, files["a"])
    with pytest.raises(PeckerError, match=r"different bases \(\w{12} and \w{12}\); only patches"):
        apply_patch(base, file)
    with pytest.raises(PeckerError, match="different bases"):
        overlap_of(read_patch(file), read_patch(files["a"]))


def test_a_report_names_the_blocks_with_most_entries(tmp_path):
    base = nn.ModuleDict(
        {"down_blocks": nn.ModuleList(nn.ModuleDict({"proj": nn.Linear(4, 4)}) for _ in range(4))}
    )
    files = []
    for density, seed in ((1.0, 1), (0.9, 2)):
        mask = mask_of(base, density)
        files.append(tmp_path / f"{seed}.safetensors")
        save_patch(files[-1], base, erased_from(base, mask, seed), mask)
    found = overlap_of(read_patch(files[1]), read_patch(files[0]))
    assert found.entries == 72 and found.share == 1
    assert sum(found.blocks.values()) == 72 and len(found.blocks) == 4
    most = max(found.blocks.values())
    assert f"too: down_blocks.{list(found.blocks.values()).index(most)} {most}, " in str(found)
    assert str(found).endswith(" and 1 blocks more")
