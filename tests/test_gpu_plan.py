"""The plan for half an hour with a card: its commands exist, and what they leave is kept."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _tools_on_the_path(monkeypatch):
    for folder in ("benchmarks", "tools/gpu"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


def all_words():
    import plan
    import run

    for part in plan.PARTS:
        for command in part.commands:
            yield command, run.words(command, "abc", Path("out.json"))


def test_every_command_of_the_plan_can_be_run(capsys):
    """Its files are there, its tests by the names in -k; benchmarks know their options."""
    import plan

    assert len(plan.PARTS) == 6
    for command, words in all_words():
        files = [word for word in words if re.match(r"(tests|benchmarks|tools)/", word)]
        assert files and all((ROOT / file).exists() for file in files), command
        assert not any("{" in word for word in words)
        if "-k" in words and any(word.endswith(".py") for word in words):
            (file,) = (word for word in words if word.endswith(".py"))
            names = re.findall(r"(?<!not )\b[a-z]\w+", words[words.index("-k") + 1])
            for name in set(names) - {"and", "or", "not"}:
                assert name in (ROOT / file).read_text(), (command, name)
        if words[1].startswith("benchmarks/"):
            script = importlib.import_module(Path(words[1]).stem)
            assert script.main([*words[2:], "--list"]) == 0, words
    assert "step_time sd15 mask=heavy density=0.1" in capsys.readouterr().out


def row(provider="pecker_fast[cuda]", **columns):
    case = {"benchmark": "step_time", "preset": "sd15", "mask": "heavy", "density": 0.1}
    run = {"dtype": "float32", "beta1": 0.9, "provider": provider, "match": True}
    return {**case, **run, **columns}


def result(*rows, device="NVIDIA H100", commit="abc"):
    return {"machine": {"device": device, "commit": commit}, "failures": [], "rows": [*rows]}


def test_commands_are_cut_off_and_their_rows_kept(monkeypatch, tmp_path, capsys):
    import plan
    import run

    script = tmp_path / "slow.py"
    script.write_text(
        "import pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text('rows')\ntime.sleep(60)\n"
    )
    commands = (
        plan.Command(f"{{python}} {shlex.quote(str(script))} {{json}}", "cut off"),
        plan.Command("{python} -c pass", "not begun"),
        plan.Command("{python} -c pass", "", needs="no-such-program"),
    )
    monkeypatch.setattr(run, "PARTS", (plan.Part("toy", commands),))
    monkeypatch.setattr(run, "PART_SECONDS", 3)
    monkeypatch.setattr(run, "LEAST_SECONDS", 1)
    monkeypatch.setattr(sys, "argv", ["run.py", "1", "--out", str(tmp_path / "out")])
    assert run.main() == 1
    printed = capsys.readouterr().out
    assert re.search(r"stopped after \d s", printed)
    assert "no time" in printed and "no no-such-program" in printed
    assert (tmp_path / "out" / "part1-1.rows.json").read_text() == "rows"


def test_what_came_home_is_merged_into_the_cards_file(monkeypatch, tmp_path, capsys):
    import merge

    old, new, other = row(p50_ms=1.6), row(p50_ms=1.4), row("torch_fused", p50_ms=9.2)
    for name, rows in (("part2-1", [old, other]), ("part2-2", [new])):
        (tmp_path / f"{name}.rows.json").write_text(json.dumps(result(*rows)))
    arguments = ["merge.py", str(tmp_path), "--into", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert merge.main() == 0
    merged = json.loads((tmp_path / "results" / "nvidia-h100.json").read_text())
    assert merged["rows"] == [other, new] and merged["complete"] is False
    assert "1.4 ms, predicted 1.39 to 1.52: as predicted" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="several: device"):
        merge.merged([result(), result(device="another")])


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("target", ["test-gpu", "bench-gpu"])
def test_make_with_a_python_that_is_there_installs_nothing(target):
    command = ["make", "-n", target, "PECKER_PYTHON=some-python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "some-python" in done.stdout
    assert "venv" not in done.stdout and "pip" not in done.stdout
    without = subprocess.run(command[:3], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".venv/bin/python" in without.stdout
