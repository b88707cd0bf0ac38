"""The study of masks: its cells, a run of one, and that a file is gone on with."""

import json

import pytest


def test_every_cell_is_in_the_design_once():
    import evidence

    cells = evidence.cells()
    assert len(set(cells)) == len(cells)
    assert {cell.mask for cell in cells} == set(evidence.KINDS)
    assert {cell.seed for cell in cells} == set(range(5))


@pytest.mark.slow
def test_a_cell_and_the_next_start(tmp_path, monkeypatch, capsys):
    import evidence
    import run_tables

    for name in ("LIMIT", "JUDGED", "ASKED"):
        monkeypatch.setattr(evidence, name, 2)
    file, first = tmp_path / "rows.json", str(evidence.cells()[0])
    options = ["--json", str(file), "--only", first]
    assert evidence.main(options) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["match"] and row["iterations"] == 2 and not row["reached"] and row["mask_s"] > 0
    assert "retain_aware" in run_tables.evidence(json.loads(file.read_text()))
    capsys.readouterr()
    assert evidence.main(options) == 0
    assert first not in capsys.readouterr().out  # it has that cell
