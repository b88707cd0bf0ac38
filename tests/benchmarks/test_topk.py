"""benchmarks/topk.py: it runs anywhere, and it finds a wrong answer."""

import pytest
import torch


def test_every_provider_passes_the_gate(run):
    from topk import TopkCase

    code, result = run([TopkCase("tiny")], "--backend", "cpu")
    assert code == 0
    names = ["torch.topk", "salun_double_argsort", "torch.sort", "pecker_fast[cpu]"]
    assert [row["provider"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert row["match"] is True and row["min_ms"] > 0
        assert row["numel"] == 100_498
        assert row["bytes_moved"] == 4 * 100_498 + 4 * 10_050
        assert row["floor_ms"] == pytest.approx(4 * 100_498 / 10e9 * 1e3)  # one read at 10 GB/s
        assert row["floor_share"] == pytest.approx(row["floor_ms"] / row["p50_ms"])


def test_a_wrong_selection_is_found_out():
    import topk

    def one_less(scores, k):
        return topk.torch_topk(scores, k - 1)

    scores = [torch.rand(30), torch.rand(20)]
    to_bool = topk._BASELINES["torch.topk"][1]
    for ties in (False, True):
        assert topk.build(one_less, to_bool, scores, 10, ties).match is False
        assert topk.build(topk.torch_topk, to_bool, scores, 10, ties).match is True


@pytest.mark.parametrize("k", [1, 7, 40, 99, 100])
def test_the_independent_selection_is_the_references(k):
    """With many ties, infinities and zeros of both signs."""
    import topk

    from pecker_fast import backends

    values = torch.tensor([0.0, -0.0, 1.0, 2.0, 2.0, -1.0, float("inf")])
    scores = [values[torch.randint(7, (n,))] for n in (1, 39, 60)]
    found = backends.select("reference", "cpu").select_topk(scores, k)
    assert torch.equal(topk.exact_selection(scores, k), topk.of_positions(found, scores))


def test_ties_are_allowed_to_baselines_only():
    from topk import agreement, exact_selection

    scores = [torch.tensor([1.0, 2.0, 1.0, 0.0])]
    expected = exact_selection(scores, 2)
    assert expected.tolist() == [True, True, False, False]
    other = torch.tensor([False, True, True, False])
    assert agreement(other, expected, scores, ties=True) == {"match": True, "ties": True}
    assert agreement(other, expected, scores, ties=False)["match"] is False


def test_memory_is_given_with_and_without_the_selection(monkeypatch):
    import topk

    from pecker_fast import backends

    monkeypatch.setattr(topk, "peak_memory", lambda run, device: (run(), 1e9))
    select = backends.select("reference", "cpu").select_topk
    monkeypatch.setattr(topk, "_FEWEST", 50)
    columns = topk.build(select, topk.of_positions, [torch.rand(30), torch.rand(20)], 10).columns
    assert columns["peak_extra_bytes"] - columns["extra_bytes_without_result"] == 4 * 10
    columns = topk.build(select, topk.of_positions, [torch.rand(49)], 10).columns
    assert columns["peak_extra_bytes"] is None  # resident memory says nothing about so little
