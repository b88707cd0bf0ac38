"""A step's values sent to a copy of the model: every bit arrives, nothing else is touched."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from oracle import bits
from test_optim_contract import BASE, make_model, random_masks

from pecker_fast import Delta, MaskedAdamW, PeckerError, SaliencyMask, apply_delta


def make_mask(model):
    masks = random_masks(model, 0.3)
    masks["0.bias"].zero_()  # a parameter that is frozen as a whole
    return SaliencyMask.from_dense(masks)


def step_on_random_gradients(model, optimizer):
    for param in model.parameters():
        param.grad = torch.randn(param.shape).to(param)
    optimizer.step()


def same(first, second):
    return all(
        torch.equal(bits(a), bits(b))
        for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("masked", [True, False])
def test_copy_follows_to_the_bit(backend, dtype, masked):
    """Over several steps, in another memory format, with values that are none."""
    model = make_model(backend.device).to(dtype)
    mirror = copy.deepcopy(model).to(memory_format=torch.channels_last)
    mask = make_mask(model) if masked else None
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=mask, backend=backend.name)
    for step in range(3):
        step_on_random_gradients(model, optimizer)
        if step == 1:  # infinity and -0.0 are values like others
            for value, name in ((float("inf"), "0.weight"), (-0.0, "2.weight")):
                where = 3 if mask is None else int(mask.indices[name][3])
                model.get_parameter(name).data.view(-1)[where] = value
        delta = optimizer.delta()
        apply_delta(mirror, delta, mask, backend=backend.name)
        assert same(model, mirror)
    entries = mask.nnz if masked else sum(p.numel() for p in model.parameters())
    assert delta.nbytes == entries * dtype.itemsize  # no positions
    assert ("0.bias" in delta.values) is not masked
    assert len({value.untyped_storage().data_ptr() for value in delta.values.values()}) == 1


def test_frozen_entries_of_the_copy_are_not_written(backend):
    model = make_model(backend.device)
    mask = make_mask(model)
    optimizer = MaskedAdamW(model.named_parameters(), **BASE, mask=mask, backend=backend.name)
    mirror = copy.deepcopy(model)
    with torch.no_grad():
        for param in mirror.parameters():
            param.fill_(float("nan"))
    apply_delta(mirror, optimizer.delta(), mask, backend=backend.name)
    for name, param in mirror.named_parameters():
        dense = mask.to_dense()[name].to(backend.device)
        assert param[~dense].isnan().all()
        assert torch.equal(param[dense], model.get_parameter(name)[dense])


def test_file_and_pickle(tmp_path):
    model = make_model().bfloat16()
    mask = make_mask(model)
    delta = MaskedAdamW(model.named_parameters(), **BASE, mask=mask).delta()
    delta.save(tmp_path / "delta.safetensors")
    for other in (Delta.load(tmp_path / "delta.safetensors"), pickle.loads(pickle.dumps(delta))):
        assert other.mask == delta.mask
        assert other.values.keys() == delta.values.keys()
        assert all(torch.equal(v, other.values[n]) for n, v in delta.values.items())
        apply_delta(make_model().bfloat16(), other, mask)


def test_one_digest_however_the_mask_was_given():
    """Groups, their order, and frozen parameters that the optimizer lacks do not matter."""
    model = make_model()
    mask = make_mask(model)
    named = dict(model.named_parameters())
    optimizers = [
        MaskedAdamW(named.items(), **BASE, mask=mask),
        MaskedAdamW(
            [{"params": [item]} for item in list(named.items())[::-1] if item[0] != "0.bias"],
            **BASE,
            mask=mask.to_dense(),
        ),
        MaskedAdamW(model.parameters(), **BASE, mask=mask.bound(model)),
    ]
    optimizers.append(copy.deepcopy(optimizers[0]))
    digests = {
        o.delta(model if "param_names" not in o.param_groups[0] else None).mask for o in optimizers
    }
    assert len(digests) == 1
    optimizers[0].set_mask(SaliencyMask.full(model))
    assert optimizers[0].delta().mask not in digests


def test_parameters_without_names_are_refused():
    model = make_model()
    optimizer = MaskedAdamW(model.parameters(), **BASE)
    with pytest.raises(PeckerError, match=r"have no names: use delta\(model\)"):
        optimizer.delta()
    with pytest.raises(PeckerError, match="no names in this model"):
        optimizer.delta(make_model())


def test_what_does_not_fit_is_refused_before_anything_is_written():
    model = make_model()
    mask = make_mask(model)
    delta = MaskedAdamW(model.named_parameters(), **BASE, mask=mask).delta()
    mirror = make_model()
    with torch.no_grad():
        for param in mirror.parameters():
            param.zero_()
    before = copy.deepcopy(mirror)
    values = dict(delta.values)
    last = list(values)[-1]
    short = Delta({**values, last: values[last][1:]}, delta.mask)
    halved = Delta({**values, last: values[last].half()}, delta.mask)
    fewer = Delta({n: v for n, v in values.items() if n != last}, delta.mask)
    dense = MaskedAdamW(model.named_parameters(), **BASE).delta()
    for given, with_mask, network, named in [
        (delta, ~mask, mirror, "mask"),
        (delta, None, mirror, "mask given is none"),
        (dense, mask, mirror, "delta is of mask none"),
        (delta, mask.to_dense(), mirror, "SaliencyMask"),
        ({}, mask, mirror, "Delta"),
        (short, mask, mirror, last),
        (halved, mask, mirror, last),
        (fewer, mask, mirror, last),
        (delta, mask, torch.nn.Sequential(mirror), "not a wrapper"),
        (delta, mask, {**dict(mirror.named_parameters()), last: torch.zeros(7)}, last),
        (delta, mask, make_model().to("meta"), "meta"),
        (dense, None, {**dict(mirror.named_parameters()), last: torch.zeros(7)}, last),
    ]:
        with pytest.raises(PeckerError, match=named) as caught:
            apply_delta(network, given, with_mask)
        assert "\n" not in str(caught.value)
    assert same(mirror, before)
