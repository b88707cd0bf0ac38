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


def test_salient_entries_that_did_not_move_are_kept(tmp_path):
    base = network()
    erased = copy.deepcopy(base)
    with torch.no_grad():
        erased.scale += 1
    file = tmp_path / "a.safetensors"
    mask = mask_of(base, 1.0)
    assert save_patch(file, base, erased, mask).nnz == mask.nnz
    apply_patch(base, file)
    assert content(base) == content(erased)


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
        erased.down_blocks[1].running_mean += 1
    file = tmp_path / "b.safetensors"
    expected = r"mask: 1 frozen entries of 'down_blocks\.0\.weight' and entries of 1 more parameter"
    with pytest.raises(PeckerError, match=expected):
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
    with pytest.raises(PeckerError, match="1 frozen entries of 'scale'; give"):
        save_patch(tmp_path / "a.safetensors", base, erased, where(base, {"head.weight": [0]}))


def test_save_patch_refuses_what_does_not_fit(tmp_path, made):
    base, erased, _ = made
    mask, file = mask_of(base), tmp_path / "b.safetensors"
    with pytest.raises(PeckerError, match="bits of its base, so there is nothing to save"):
        save_patch(file, base, base, mask)
    with pytest.raises(PeckerError, match=r"(?s)'conv_in.bias'.*float32 in the base.*bfloat16 in"):
        wrong = copy.deepcopy(erased)
        wrong.conv_in.bias.data = wrong.conv_in.bias.data.bfloat16()
        save_patch(file, base, wrong, mask)
    with pytest.raises(PeckerError, match=r"'scale' is \(\) float32 in the base and \(1,\)"):
        wrong = copy.deepcopy(erased)
        wrong.scale = nn.Parameter(torch.ones(1))
        save_patch(file, base, wrong, mask)
    with pytest.raises(PeckerError, match="differ in the presence of 'scale'"):
        weights = weights_of(erased)
        del weights["scale"]
        save_patch(file, weights_of(base), weights, mask)
    with pytest.raises(
        PeckerError, match=r"mask does not fit the network: 'x' is \(3,\) .*missing"
    ):
        save_patch(file, base, erased, SaliencyMask.full({"x": torch.zeros(3)}))
    with pytest.raises(PeckerError, match=r"'scale' is \(2,\) there and \(\) in the network"):
        save_patch(file, base, erased, SaliencyMask.full({"scale": torch.zeros(2)}))
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, such as pipeline.unet"):
        save_patch(file, "folder", erased, mask)
    with pytest.raises(PeckerError, match="is on the meta device; load its weights"):
        save_patch(file, base, copy.deepcopy(erased).to("meta"), mask)
    with pytest.raises(PeckerError, match="text and numbers"):
        save_patch(file, base, erased, mask, concept=object())
    with pytest.raises(PeckerError, match="cannot write patch file"):
        save_patch(tmp_path / "none" / "b.safetensors", base, erased, mask)
    wide = {"a": torch.zeros(2, dtype=torch.complex128)}
    with pytest.raises(PeckerError, match=r"'a' is torch\.complex128: a patch takes entries of 1"):
        save_patch(file, wide, wide, SaliencyMask.full({"a": torch.zeros(2)}))
    assert not file.exists() and len(list(tmp_path.iterdir())) == 1


# ---- Networks a patch is not for


def test_another_base_is_refused_and_left_alone(made):
    base, _, file = made
    with torch.no_grad():
        base.scale.view(torch.int32).bitwise_xor_(1)
    before = content(base)
    digest = read_patch(file).base[:12]
    expected = rf"made for a base with digest {digest}: 1 of \d+ tensors .* first 'scale'\. Load"
    with pytest.raises(PeckerError, match=expected) as error:
        apply_patch(base, file)
    assert "\n" not in str(error.value)
    with pytest.raises(PeckerError, match=f"made for a base with digest {digest}"):
        remove_patch(base, file)
    assert content(base) == before


def test_a_buffer_belongs_to_the_base(made):
    base, _, file = made
    base.down_blocks[1].num_batches_tracked += 1
    with pytest.raises(PeckerError, match=r"first 'down_blocks\.1\.num_batches_tracked'"):
        apply_patch(base, file)


def test_applying_twice_and_removing_twice(made):
    base, erased, file = made
    with pytest.raises(PeckerError, match="does not carry the patch"):
        remove_patch(base, file)
    apply_patch(base, file)
    with pytest.raises(PeckerError, match=r"carries the patch .* already"):
        apply_patch(base, file)
    assert content(base) == content(erased)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32])
def test_another_dtype_is_refused(made, dtype):
    base, _, file = made
    base.conv_in.weight.requires_grad_(False)
    base.conv_in.weight.data = base.conv_in.weight.data.to(dtype)
    name = str(dtype).removeprefix("torch.")
    expected = rf"'conv_in\.weight' is {name}, in the patch float32; load the network in float32"
    with pytest.raises(PeckerError, match=expected):
        apply_patch(base, file)


def test_networks_that_cannot_be_written_to(made):
    base, _, file = made
    with pytest.raises(PeckerError, match="'scale' of the network is on the meta device"):
        apply_patch(copy.deepcopy(base).to("meta"), file)
    with pytest.raises(PeckerError, match="'another' in one of the two only; is it a patch for an"):
        apply_patch({**weights_of(base), "another": torch.zeros(1)}, file)
    with pytest.raises(PeckerError, match=r"'none' is \(4, 0\), in the patch \(0, 4\)"):
        wrong = copy.deepcopy(base)
        wrong.none = nn.Parameter(torch.zeros(4, 0))
        apply_patch(wrong, file)
    with pytest.raises(PeckerError, match="has 'scale' twice, with and without a prefix"):
        apply_patch({**weights_of(base), "module.scale": torch.zeros(())}, file)
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module"):
        apply_patch([base], file)
    with torch.inference_mode():
        inference = copy.deepcopy(base)
    with pytest.raises(PeckerError, match=r"made under torch\.inference_mode"):
        apply_patch(inference, file)


def test_tensors_that_share_memory_are_refused(tmp_path):
    shared = torch.randn(4)
    base, erased = {"a": shared, "b": shared}, {"a": shared + 1, "b": shared + 1}
    file = tmp_path / "a.safetensors"
    save_patch(file, base, erased, SaliencyMask.full(base))
    # XOR by both names would leave what was there.
    with pytest.raises(PeckerError, match="'a' and 'b' share their memory; clone one"):
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
@pytest.mark.parametrize("fails_at", [0, 1, 3])
@pytest.mark.parametrize("removing", [False, True])
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
