"""Patches: bit for bit there and back, and networks they are not for.

The oracle is a copy of the network and NumPy on its bytes; no code of the package tells whether two
networks agree.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_networks import content, erased_from, mask_of, network, weights_of, where
from torch import nn

from pecker_fast import SaliencyMask, apply_patch, remove_patch, save_patch
from pecker_fast.errors import PeckerError
from pecker_fast.patches.files import read_patch
from pecker_fast.patches.patch import network_digest
from pecker_fast.runs.digest import fingerprint


@pytest.fixture
def made(tmp_path):
    """Base, erased network and patch file."""
    base = network()
    mask = mask_of(base)
    erased = erased_from(base, mask)
    file = tmp_path / "a.safetensors"
    save_patch(file, base, erased, mask)
    return base, erased, file


def test_one_digest_of_a_network(made):
    base, erased, file = made
    patch = read_patch(file)
    assert network_digest(base) == fingerprint(base) == patch.base
    assert network_digest(weights_of(erased)) == patch.result
    assert patch.mask == mask_of(base).digest


# ---- There and back


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn]
)
def test_bit_for_bit_there_and_back(tmp_path, dtype):
    base = network(dtype)
    mask = mask_of(network())
    erased = erased_from(base, mask)
    assert any(p.isnan().any() for p in erased.float().parameters())
    erased = erased_from(base, mask)
    file = tmp_path / "a.safetensors"
    save_patch(file, base, erased, mask)
    subject = copy.deepcopy(base)
    apply_patch(subject, file)
    assert content(subject) == content(erased) != content(base)
    remove_patch(subject, file)
    assert content(subject) == content(base)


def test_any_strides(tmp_path, made):
    base, erased, file = made
    subject = copy.deepcopy(base).to(memory_format=torch.channels_last)
    subject.head.weight = nn.Parameter(subject.head.weight.detach().T.contiguous().T)
    strides = [p.stride() for p in subject.parameters()]
    apply_patch(subject, file)
    assert content(subject) == content(erased)
    assert [p.stride() for p in subject.parameters()] == strides
    again = tmp_path / "again.safetensors"
    save_patch(again, base.to(memory_format=torch.channels_last), subject, mask_of(base))
    assert read_patch(again).digest == read_patch(file).digest


def test_a_mapping_is_written_to(made):
    base, erased, file = made
    weights = weights_of(base)
    apply_patch(weights, file)
    assert content(weights).items() <= content(erased).items()
    remove_patch(weights, file)
    assert content(weights).items() <= content(base).items()


@pytest.mark.parametrize("prefix", ["module.", "model.diffusion_model.", "module.module."])
def test_names_with_and_without_prefixes(tmp_path, made, prefix):
    base, erased, file = made
    mask = mask_of(base)
    wrapped = SaliencyMask(
        {prefix + name: positions for name, positions in mask.indices.items()},
        {prefix + name: shape for name, shape in mask.shapes.items()},
    )
    mask_file = tmp_path / "mask.safetensors"
    wrapped.save(mask_file)
    again = tmp_path / "again.safetensors"
    save_patch(again, base, nn.DataParallel(erased), SaliencyMask.load(mask_file))
    assert read_patch(again).digest == read_patch(file).digest
    subject = copy.deepcopy(base)
    apply_patch(nn.DataParallel(subject), again)
    assert content(subject) == content(erased)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_mask(tmp_path_factory, data):
    shapes = data.draw(
        st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4), label="shapes"
    )
    base = nn.ParameterList([torch.randn(shape) for shape in shapes])
    places = {
        name: sorted(data.draw(st.sets(st.integers(0, p.numel() - 1))))
        for name, p in base.named_parameters()
        if p.numel()
    }
    if not any(places.values()):
        return
    mask = where(base, places)
    erased = erased_from(base, mask, data.draw(st.integers(0, 99)))
    file = tmp_path_factory.mktemp("patch") / "a.safetensors"
    if content(base) == content(erased):  # a single entry may get the bits it had
        return
    save_patch(file, base, erased, mask)
    subject = copy.deepcopy(base)
    apply_patch(subject, file)
    assert content(subject) == content(erased)
    remove_patch(subject, file)
    assert content(subject) == content(base)


# ---- What save_patch refuses


def test_a_frozen_entry_that_moved(made, tmp_path):
    base, erased, _ = made
    mask = mask_of(base)
    frozen = (~mask).indices["down_blocks.0.weight"][5]
    with torch.no_grad():
        flat = erased.down_blocks[0].weight.view(-1).view(torch.int32)
        flat[frozen] ^= 1  # the last bit
    file = tmp_path / "b.safetensors"
    with pytest.raises(PeckerError, match=r"1 frozen entries of 'down_blocks\.0\.weight'"):
        save_patch(file, base, erased, mask)
    assert not file.exists()


def test_minus_zero_outside_the_mask_is_a_difference(tmp_path):
    base = network()
    with torch.no_grad():
        base.scale.zero_()
    erased = copy.deepcopy(base)
    with torch.no_grad():
        erased.scale.neg_()
        erased.head.weight[0, 0] += 1
    with pytest.raises(PeckerError, match="1 frozen entries of 'scale'"):
        save_patch(tmp_path / "a.safetensors", base, erased, where(base, {"head.weight": [0]}))


def changed(net, name, value):
    """A copy whose parameter `name` has another value, or which lacks it."""
    weights = weights_of(net)
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    return weights


def test_save_patch_refuses_what_does_not_fit(tmp_path, made):
    base, erased, _ = made
    weights, mask, wide = weights_of(base), mask_of(base), torch.zeros(2, dtype=torch.complex128)
    for named, before, after, of in (
        ("bits of its base", base, base, mask),
        ("conv_in.bias", weights, changed(erased, "conv_in.bias", torch.zeros(8).bfloat16()), mask),
        ("scale", weights, changed(erased, "scale", torch.ones(1)), mask),
        ("scale", weights, changed(erased, "scale", None), mask),
        ("'x'", base, erased, SaliencyMask.full({"x": torch.zeros(3)})),
        ("scale", base, erased, SaliencyMask.full({"scale": torch.zeros(2)})),
        ("meta device", base, copy.deepcopy(erased).to("meta"), mask),
        ("complex128", {"a": wide}, {"a": wide}, SaliencyMask.full({"a": torch.zeros(2)})),
    ):
        with pytest.raises(PeckerError, match=named):
            save_patch(tmp_path / "b.safetensors", before, after, of)
    with pytest.raises(TypeError, match="Module"):
        save_patch(tmp_path / "b.safetensors", "folder", erased, mask)
    with pytest.raises(PeckerError, match="text and numbers"):
        save_patch(tmp_path / "b.safetensors", base, erased, mask, concept=object())
    with pytest.raises(PeckerError, match="cannot write patch file"):
        save_patch(tmp_path / "none" / "b.safetensors", base, erased, mask)
    assert len(list(tmp_path.iterdir())) == 1


# ---- Networks a patch is not for


def test_another_base_is_refused_and_left_alone(made):
    base, _, file = made
    with torch.no_grad():
        base.scale.view(torch.int32).bitwise_xor_(1)
    base.down_blocks[1].num_batches_tracked += 1  # a buffer belongs to the base
    before = content(base)
    for use in (apply_patch, remove_patch):
        with pytest.raises(PeckerError, match=f"{read_patch(file).base[:12]}: .*'scale'"):
            use(base, file)
    assert content(base) == before


def test_applying_twice_and_removing_twice(made):
    base, erased, file = made
    with pytest.raises(PeckerError, match="does not carry the patch"):
        remove_patch(base, file)
    apply_patch(base, file)
    with pytest.raises(PeckerError, match=r"carries the patch .* already"):
        apply_patch(base, file)
    assert content(base) == content(erased)


def test_networks_that_cannot_be_written_to(made):
    base, _, file = made
    with torch.inference_mode():
        inference = copy.deepcopy(base)
    for named, wrong in (
        ("meta device", copy.deepcopy(base).to("meta")),
        ("another", changed(base, "another", torch.zeros(1))),
        ("none", changed(base, "none", torch.zeros(4, 0))),
        (
            "conv_in.weight.*bfloat16",
            changed(base, "conv_in.weight", torch.ones(8, 3, 3, 3).bfloat16()),
        ),
        ("'scale' twice", changed(base, "module.scale", torch.zeros(()))),
        ("inference_mode", inference),
    ):
        with pytest.raises(PeckerError, match=named):
            apply_patch(wrong, file)
    with pytest.raises(TypeError, match="Module"):
        apply_patch([base], file)


def test_tensors_that_share_memory_are_refused(tmp_path):
    shared = torch.randn(4)
    base, erased = {"a": shared, "b": shared}, {"a": shared + 1, "b": shared + 1}
    file = tmp_path / "a.safetensors"
    save_patch(file, base, erased, SaliencyMask.full(base))
    # XOR by both names would leave what was there.
    with pytest.raises(PeckerError, match="'a' and 'b' share their memory"):
        apply_patch(base, file)


# ---- Nothing half applied


def test_a_write_that_fails_is_taken_back(made):
    base, _, file = made
    weights = weights_of(base)
    # Entries that share one place in memory can be read and compared, but not written to.
    weights["head.weight"] = torch.zeros(1).expand(8, 8)
    erased = {name: tensor.clone() for name, tensor in weights.items()}
    erased["conv_in.weight"] += 1
    erased["head.weight"] = torch.ones(8, 8)
    mask = SaliencyMask.full({n: p for n, p in base.named_parameters() if p.numel()})
    save_patch(file, weights, erased, mask)
    before = content(weights)
    with pytest.raises(RuntimeError, match="single memory location"):
        apply_patch(weights, file)
    assert content(weights) == before


@pytest.mark.parametrize("after_the_write", [False, True])
@pytest.mark.parametrize(("fails_at", "removing"), [(0, False), (1, True), (3, False)])
def test_an_interrupt_leaves_the_network_as_it_was(
    made, monkeypatch, after_the_write, fails_at, removing
):
    base, erased, file = made
    subject = copy.deepcopy(base)
    if removing:
        apply_patch(subject, file)
    write, calls = torch.Tensor.bitwise_xor_, []

    def interrupted(self, other):
        calls.append(self)
        if len(calls) - 1 == fails_at:
            if after_the_write:
                write(self, other)
            raise KeyboardInterrupt
        return write(self, other)

    monkeypatch.setattr(torch.Tensor, "bitwise_xor_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        (remove_patch if removing else apply_patch)(subject, file)
    monkeypatch.undo()
    assert content(subject) == content(erased if removing else base)
    assert len(calls) == 2 * fails_at + 1 + after_the_write
    (remove_patch if removing else apply_patch)(subject, file)
    assert content(subject) == content(base if removing else erased)


# ---- Several patches of one base


def test_disjoint_patches_go_on_and_off_in_any_order(tmp_path):
    base, files, erased = network(), {}, {}
    places = {
        "a": {"head.weight": [0, 1, 2], "conv_in.weight": [7, 9], "scale": [0]},
        "b": {"head.weight": [5, 6], "down_blocks.0.weight": [1]},
        "c": {"head.weight": [2]},
    }
    for seed, (name, found) in enumerate(places.items()):
        mask = where(base, found)
        erased[name] = erased_from(base, mask, seed)
        files[name] = tmp_path / f"{name}.safetensors"
        save_patch(files[name], base, erased[name], mask)
    subject = copy.deepcopy(base)
    apply_patch(subject, files["a"])
    before = content(subject)
    with pytest.raises(PeckerError, match="other patches that it carries"):
        apply_patch(subject, files["b"])
    with pytest.raises(PeckerError, match="1 entries in common"):
        apply_patch(subject, files["c"], applied=[files["a"]])
    assert content(subject) == before
    apply_patch(subject, files["b"], applied=[files["a"]])
    for first, second in ("ab", "ba"):
        both = copy.deepcopy(subject)
        remove_patch(both, files[first], applied=[files[second]])
        assert content(both) == content(erased[second])
        remove_patch(both, files[second])
        assert content(both) == content(base)
    changed = network(seed=5)
    mask = mask_of(changed)
    save_patch(tmp_path / "other.safetensors", changed, erased_from(changed, mask), mask)
    with pytest.raises(PeckerError, match="different bases"):
        apply_patch(subject, tmp_path / "other.safetensors", applied=[files["a"]])
