"""The budget counts what an iteration does, once."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.slow
def test_an_iteration_by_kind_of_kernel(run):
    from budget import BudgetCase

    code, result = run([BudgetCase("tiny", 2)])
    assert code == 0
    rows = {row["provider"]: row for row in result["rows"]}
    assert len(rows) == 2
    for row in rows.values():
        assert row["predicted_ms"] == pytest.approx(sum(row["parts_ms"].values()))
        assert row["parts_kernels"]["optimizer"] == 2  # generator, pseudo-score


def test_products_are_those_that_torch_counts(monkeypatch):
    """Forward and backward of a network: convolutions, matrix products, attention."""
    import budget
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pecker_fast.models.ddpm import DDPMUNet
    from pecker_fast.nn.accelerate import fuse_
    from pecker_fast.runs.memory_model import without_values

    options = {"sample_size": 8, "channels": 8, "channel_mult": (1, 2), "norm_num_groups": 4}
    found = budget.Budget()
    with without_values():
        network = DDPMUNet(**options, blocks_per_level=1)
        inputs = torch.randn(2, 3, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            network(*inputs).sample.sum().backward()
        with budget._as_on_a_card(found):
            fuse_(network)
            with budget._Operations(found):
                network(*inputs).sample.sum().backward()
    total = sum(part.tflop for part in found.parts.values()) * 1e12
    # Flash attention's backward computes the scores again: five products for four.
    again = found.parts["attention"].tflop * 1e12 / 7
    assert total - again == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert found.parts["normalisation"].kernels > 20
