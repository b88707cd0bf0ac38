import copy

import pytest
import torch
from toys import ToyDenoiser

from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.runs.ema import SalientEma, slow_average

DECAY = 0.7


@pytest.fixture
def network():
    return ToyDenoiser().requires_grad_(True)


def perturb(network, mask):
    dense = mask.to_dense()
    with torch.no_grad():
        for name, param in network.named_parameters():
            param += torch.randn_like(param) * dense[name]


def dense_average(average, network):
    """The usual average over whole tensors: what the compact one must not differ from."""
    for name, param in network.named_parameters():
        average[name] = DECAY * average[name] + (1 - DECAY) * param.detach()


def read(ema, network):
    target = copy.deepcopy(network)
    ema.copy_to(target)
    return {name: p.detach() for name, p in target.named_parameters()}


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
def test_equals_the_average_of_whole_tensors(network, backend, density):
    network.to(memory_format=torch.channels_last)
    mask = SaliencyMask.random(network, density, seed=0)
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    average = dict(start)
    ema = SalientEma(network, mask, DECAY, backend)
    for _ in range(4):
        perturb(network, mask)
        ema.update()
        dense_average(average, network)
    result, dense = read(ema, network), mask.to_dense()
    for name, value in result.items():
        torch.testing.assert_close(value[dense[name]], average[name][dense[name]])
        assert torch.equal(value[~dense[name]], start[name][~dense[name]])
    held = sum(value.numel() for value in ema.state_dict().values())
    assert held == mask.nnz
    assert all(value.dtype == torch.float32 for value in ema.state_dict().values())


@pytest.mark.parametrize(("dtype", "held"), [(torch.bfloat16, torch.float32), (torch.float64,) * 2])
def test_other_precisions(dtype, held):
    network = ToyDenoiser().to(dtype)
    mask = SaliencyMask.full(network)
    average = {name: p.detach().to(held, copy=True) for name, p in network.named_parameters()}
    ema = SalientEma(network, mask, DECAY)
    for _ in range(3):
        perturb(network, mask)
        ema.update()
        for name, param in network.named_parameters():
            average[name] = DECAY * average[name] + (1 - DECAY) * param.detach().to(held)
    for name, value in ema.state_dict().items():
        assert value.dtype == held
        torch.testing.assert_close(value, average[name].flatten())


def test_entries_that_join_start_at_their_weight(network):
    first = SaliencyMask.random(network, 0.1, seed=0)
    union = first | SaliencyMask.random(network, 0.2, seed=1)
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    ema = SalientEma(network, first, DECAY)
    for mask in (first, first, union, union):
        if mask is union:
            ema.extend(union)
        perturb(network, mask)
        ema.update()
        dense_average(average, network)
    assert sum(value.numel() for value in ema.state_dict().values()) == union.nnz
    for name, value in read(ema, network).items():
        torch.testing.assert_close(value, average[name])


def test_an_average_of_another_mask_is_refused(network):
    one = SaliencyMask({"a": torch.tensor([0], dtype=torch.int32)}, {"a": (2,)})
    ema = SalientEma(network, SaliencyMask.full(network), DECAY)
    with pytest.raises(PeckerError, match="another mask"):
        ema.load_state_dict({name: torch.zeros(1) for name in one})


@pytest.mark.parametrize(
    ("decay", "iterations", "left"),
    [
        (None, 1, None),
        (0.9999, 0, None),
        (0.9999, 50_000, None),
        (0.9999, 500, "95%"),
        (0.95, 20, "36%"),
    ],
)
def test_a_run_that_ends_before_its_average_has_moved_is_warned_of(decay, iterations, left):
    said = slow_average(decay, iterations)
    assert [left in line for line in said] == ([] if left is None else [True])
