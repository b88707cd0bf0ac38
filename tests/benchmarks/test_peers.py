"""benchmarks/peers.py: another package's row is checked like ours, or is not there."""

import sys
from types import ModuleType

import pytest
import torch


class SelectiveAdam(torch.optim.Adam):
    """What gsplat documents, in torch: visible rows only, no bias correction."""

    touches_hidden = False

    def __init__(self, params, eps, betas):
        super().__init__(params=params, eps=eps, betas=betas)

    @torch.no_grad()
    def step(self, visibility):
        for group in self.param_groups:
            (param,) = group["params"]
            state = self.state[param]
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), 0 * param
            beta1, beta2 = group["betas"]
            exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * param.grad
            exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * param.grad**2
            update = group["lr"] * exp_avg / (exp_avg_sq.sqrt() + group["eps"])
            seen = visibility | self.touches_hidden
            param.sub_(torch.where(seen, update, 0.0))
            state["exp_avg"].copy_(torch.where(seen, exp_avg, state["exp_avg"]))
            state["exp_avg_sq"].copy_(torch.where(seen, exp_avg_sq, state["exp_avg_sq"]))


@pytest.fixture
def gsplat(monkeypatch):
    package, optimizers = ModuleType("gsplat"), ModuleType("gsplat.optimizers")
    optimizers.SelectiveAdam = SelectiveAdam
    package.__spec__ = object()
    monkeypatch.setitem(sys.modules, "gsplat", package)
    monkeypatch.setitem(sys.modules, "gsplat.optimizers", optimizers)


def make_case(mask="random", dtype=torch.float32):
    from inputs import make_case

    return make_case("tiny", dtype, mask, 0.1, "cpu")


def test_an_absent_package_has_no_row(monkeypatch):
    import peers

    monkeypatch.setattr(peers, "_installed", lambda package: False)
    assert peers.builders(make_case()) == {}
    assert peers.absent() == ["gsplat SelectiveAdam"]


def test_gsplat_takes_element_masks(gsplat):
    import peers

    case = make_case()
    build = peers.builders(case)["gsplat SelectiveAdam"]
    provider = build()
    assert provider.match is True
    assert provider.state_bytes == 8 * 100_498 and provider.mask_bytes == 100_498
    before = case.params["odd"].detach().clone()
    provider.step()
    moved = case.params["odd"].detach() != before
    assert torch.equal(moved, case.masks["odd"])


def test_a_kernel_that_moves_frozen_entries_is_found_out(gsplat, monkeypatch):
    import peers

    monkeypatch.setattr(SelectiveAdam, "touches_hidden", True)
    assert peers.gsplat_selective_adam(make_case()).match is False


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("none",), "without a mask is not a masked step"),
        (("random", torch.bfloat16), "float32 only"),
    ],
)
def test_what_gsplat_cannot_do_is_said(gsplat, arguments, reason):
    import peers
    from providers import NotApplicable

    with pytest.raises(NotApplicable, match=reason):
        peers.gsplat_selective_adam(make_case(*arguments))
