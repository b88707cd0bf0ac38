"""Copies and moves of the optimizer, its end, and how many files a step goes through."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from pathlib import Path

import pytest
import torch
from test_optim_contract import BASE, assert_same, backward, make_model, random_masks, train

from pecker_fast.errors import PeckerError
from pecker_fast.optim.adamw import MaskedAdamW


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_copies_go_on_bit_identically(backend, clone, masked):
    model = make_model(backend.device)
    mask = random_masks(model) if masked else None
    optimizer = MaskedAdamW(
        model.named_parameters(), **BASE, amsgrad=True, mask=mask, backend=backend.name
    )
    train(model, optimizer, 2)
    if masked:
        optimizer.set_mask(random_masks(model), "carry")
        train(model, optimizer, 1)
    model2, optimizer2 = clone((model, optimizer))
    train(model, optimizer, 3, seed=9)
    halfway = copy.deepcopy(model2)
    train(model2, optimizer2, 3, seed=9)
    assert_same(model, model2)
    assert not torch.equal(halfway[2].weight, model2[2].weight)
    assert optimizer2.backend == backend.name
    assert repr(optimizer) == repr(optimizer2)


def test_the_optimizer_can_be_freed():
    model = make_model()
    optimizer = MaskedAdamW(
        model.named_parameters(), **BASE, mask=random_masks(model), release_grads=True
    )
    train(model, optimizer, 1)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    backward(model)  # the hooks are harmless then
    assert all(param.grad is not None for param in model.parameters())


def test_parameters_on_another_device_than_their_state():
    model = make_model()
    optimizer = MaskedAdamW(model.named_parameters(), **BASE)
    state = optimizer.state[model[0].weight]
    state["exp_avg_sq"] = state["exp_avg_sq"].to("meta")
    with pytest.raises(PeckerError, match=r"'0\.weight' is on cpu, its state on meta"):
        optimizer.step()


def test_a_step_is_read_in_five_files():
    """From `p.grad` to the C++ call; a step that goes through more of them is harder to follow."""
    model = torch.nn.Linear(8, 8)
    optimizer = MaskedAdamW(model.named_parameters(), backend="reference")
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    files = set()

    def note(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and "pecker_fast" in path.parts:
            files.add("/".join(path.parts[-2:]))

    sys.setprofile(note)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    assert len(files) <= 5, sorted(files)
