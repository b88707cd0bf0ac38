import itertools

import pytest
import torch

from pecker_fast.runs.randomness import SALIENCY, TRAINING, IterationRandom, same_algorithms

CPU = torch.device("cpu")


def numbers(seed, iteration, purpose):
    random = IterationRandom(seed, iteration, CPU, purpose)
    draws = random.normal((8,), torch.float32)
    with random.global_streams():
        return draws, torch.rand(8)


def test_seed_iteration_and_purpose_decide_everything():
    keys = list(itertools.product((0, 1), (0, 1, 2), (TRAINING, SALIENCY)))
    drawn = [numbers(*key) for key in keys]
    torch.manual_seed(99)
    for key, (draws, dropout) in zip(keys, drawn, strict=True):
        again, dropout_again = numbers(*key)
        assert torch.equal(draws, again)
        assert torch.equal(dropout, dropout_again)
    for one, other in itertools.combinations(drawn, 2):
        assert not torch.equal(one[0], other[0])
        assert not torch.equal(one[1], other[1])


def test_the_callers_random_state_comes_back_even_after_an_error():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with (
        pytest.raises(RuntimeError, match="stop"),
        IterationRandom(0, 0, CPU, TRAINING).global_streams(),
    ):
        torch.rand(2)
        raise RuntimeError("stop")
    assert torch.equal(torch.rand(4), expected)


def flags():
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def test_algorithms_that_give_the_same_bits_are_asked_for_and_given_back(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    with same_algorithms(False):
        assert flags() == before
    with pytest.raises(ZeroDivisionError), same_algorithms(True):
        assert flags() == (True, True, False, False)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        raise ZeroDivisionError
    assert flags() == before
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
