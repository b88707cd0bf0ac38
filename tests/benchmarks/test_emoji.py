"""The table of erased emoji: what the other methods aim at, and a run of each."""

import json

import pytest
import torch


@pytest.fixture
def drawing():
    from pecker_fast.methods.redirect import Drawing

    told, original = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    original[:2] = told[:2]  # to keep
    return Drawing(torch.randn(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), told, original)


class Conditions:
    def embeddings(self, prompts, device):
        return torch.full((len(prompts), 2, 4), 0.25)


def test_targets_of_the_other_methods(drawing, monkeypatch):
    import emoji

    monkeypatch.setattr(emoji, "TextConditions", Conditions)

    def predicts(factor):
        return lambda condition: factor * condition.mean((1, 2)).view(-1, 1, 1, 1)

    before, now = predicts(1.0), predicts(3.0)
    for method, wanted in (
        (emoji.Away, 2 * 0.25 - before(drawing.told)[2]),
        (emoji.Imitating, now(drawing.original)[2]),
    ):
        objective = method.__new__(method)
        objective.frozen, objective.conditions = before, Conditions()
        objective.device = torch.device("cpu")
        objective.telling = lambda network, condition: lambda x, t: network(condition)
        found = objective.targets(now, drawing)(drawing.noise, drawing.offset)
        torch.testing.assert_close(found[2], wanted)
        torch.testing.assert_close(found[:2], before(drawing.told)[:2])


@pytest.mark.slow
def test_every_method_runs(tmp_path, monkeypatch):
    import emoji
    import run_tables

    monkeypatch.setattr(emoji, "ASKED", 24)
    monkeypatch.setattr(emoji, "KEPT", 1)
    monkeypatch.setattr(emoji, "STEPS", 2)
    short = {"iterations": 1, "saliency.batches": 1, "saliency.batch_size": 2}
    methods = {name: (kind, {**said, **short}) for name, (kind, said) in emoji.METHODS.items()}
    monkeypatch.setattr(emoji, "METHODS", methods)
    monkeypatch.setattr(emoji, "RATES", {name: (1e-3,) for name in methods})
    file = tmp_path / "rows.json"
    assert emoji.main(["--json", str(file), "--only", "object"]) == 0
    result = json.loads(file.read_text())
    assert [row["method"] for row in result["rows"]] == ["original", *methods]
    assert all(row["match"] is not False for row in result["rows"])
    assert [row["iterations"] for row in result["rows"]] == [0, 1, 1, 1]
    assert all(row["in_domain"][1] == row["cross_domain"][1] == 92 for row in result["rows"])
    assert "SalUn" in run_tables.emoji(result)
