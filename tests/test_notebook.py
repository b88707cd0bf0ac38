"""The notebook of docs/ runs from its first cell to its last, and holds no outputs."""

import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "docs" / "erase.ipynb"
CELLS = [c for c in json.loads(FILE.read_text())["cells"] if c["cell_type"] == "code"]


def test_outputs_are_stripped():
    assert CELLS
    assert not any(cell["outputs"] or cell["execution_count"] for cell in CELLS)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, cell in enumerate(CELLS):
        exec(compile("".join(cell["source"]), f"{FILE.name}, cell {number}", "exec"), names)
    erased = names["erased"]
    assert erased.frozen.frozen_changed == 0 < erased.frozen.salient_changed
    assert erased.report.headline in capsys.readouterr().out
    assert (tmp_path / "forgotten-dogs" / "report.html").is_file()
