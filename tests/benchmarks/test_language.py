"""The language model: its design, what it says without PEFT, and a run of one cell."""

import importlib.util
import json

import pytest


def test_every_cell_is_in_the_design_once():
    import language

    cells = language.cells()
    assert len({str(cell) for cell in cells}) == len(cells)
    assert {getattr(cell, "method", "full") for cell in cells} == set(language.METHODS)


def test_without_peft_one_line_says_what_to_install(monkeypatch, capsys):
    import language

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert language.main(["--only", "method=LoRA"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install peft" in line


@pytest.mark.slow
def test_a_cell_and_the_next_start(tmp_path, monkeypatch, capsys):
    import language
    import language_model
    import run_tables

    small = {"WIDTH": 64, "LAYERS": 1, "PRETRAINED": 2, "WINDOWS": 2, "CACHE": tmp_path}
    for name, value in small.items():
        monkeypatch.setattr(language_model, name, value)
    monkeypatch.setattr(language, "STEPS", 2)
    monkeypatch.setattr(language, "SEEDS", range(2))
    file = tmp_path / "rows.json"
    options = ["--json", str(file), "--only", "method=random rank=2"]
    assert language.main(options) == 0
    result = json.loads(file.read_text())
    trained = sum(2 * sum(shape) for shape in [(64, 64)] * 4 + [(160, 64)] * 3)
    for seed, row in enumerate(result["rows"]):
        assert row["match"] and row["seed"] == seed and row["trained_values"] == trained
        assert row["code_loss"] != row["code_loss_before"] and len(row["tried"]) == 3
        assert row["file_bytes"] > row["bf16_file_bytes"] > 2 * trained
    assert f"| mask, random: {trained:,} |" in run_tables.language(result)
    capsys.readouterr()
    assert language.main(options) == 0
    assert "method=random" not in capsys.readouterr().out  # it has that cell


def test_costs_and_losses_in_one_table():
    """A line has the cost of its own number of values; factors are of one case each."""
    import run_tables

    def cost(provider, rank, ms):
        return {
            "benchmark": "language_cost", "preset": "llama", "rank": rank, "batch_size": 1,
            "provider": provider, "match": True if provider == "random" else None,
            "trained_values": 1000 * rank, "p50_ms": ms, "peak_bytes": rank * 2**20,
        }  # fmt: skip

    def tuned(method, rank):
        return {
            "benchmark": "language", "preset": "llama", "method": method, "rank": rank, "seed": 0,
            "lr": 0.01, "tried": [(1.0, 0.01), (1.1, 0.003)], "trained_values": 1000 * rank,
            "code_loss_before": 3.0, "code_loss": 2.0, "prose_loss_before": 1.5,
            "prose_loss": 1.75, "file_bytes": 5000 * rank, "bf16_file_bytes": 3000 * rank,
        }  # fmt: skip

    rows = [cost("SHiRA", 2, 30.0), cost("random", 2, 20.0)]
    rows += [cost("SHiRA", 16, 60.0), cost("random", 16, 30.0)]
    rows += [tuned("random", 2), tuned("saliency", 2)]
    machine = {"device": "CPU", "torch": "2.13", "threads": 1, "commit": "abc"}
    text = run_tables.language({"machine": machine, "rows": rows})
    figures = "0.01 (highest) | 2.000 | 0.250 |"
    assert f"| mask, random: 2,000 | {figures} 20 | 2 | 10 (40.0) | 6 (24.0) |" in text
    assert f"| mask, saliency: 2,000 | {figures} " in text
    assert "1.50 to 2.00 times" in text
