"""What `compare` refuses: every wrong file in one short line that names it."""

import json

import pytest
import yaml
from run_folders import judgement, pecker, points, write_run

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.comparison_reading import read_runs


def test_what_is_no_run(tmp_path):
    run = write_run(tmp_path / "run", pecker())
    with pytest.raises(PeckerError, match="given twice"):
        read_runs([run, run.parent / "." / "run"])
    for path, named in ((tmp_path / "none", "none"), (tmp_path, r"config\.yaml")):
        with pytest.raises(PeckerError, match=named):
            read_runs([path])


DEEP = "[" * 100_000
BOMB = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))
WRONG = {
    "config.yaml": [
        "a: [", "[]", "iterations: 1", "iterations: 1\nseed: 0\ntext: {}\n",
        b"\xff\xfe", DEEP, f"a0: &a0 [1, 1]\n{BOMB}", {"mask": "full"}, {"mask": None, "seed": "x"},
        {"forget": 12}, {"forget": -1}, {"forget": "no such class"}, {"forget": [0]},
        {"override": 1.5}, {"iterations": -1}, {"iterations": True}, {"method": {}},
        f"seed: {'9' * 10_000}", "seed: !!python/name:os.system",
    ],
    "report.json": [
        "{", "[]", "null", b"\xff", DEEP, '{"after": NaN}', {"after": None}, {"after": 1},
        {"after": {}}, {"after.forget_accuracy": "0.5"}, {"after.class_accuracy": 1},
        {"after.class_accuracy": ["x"]}, {"after.frechet": [1]},
        {"after.frechet": 1e308}, {"versions": ["torch"]},
        {"versions": {"torch": 2}}, {"mask": 3}, '{"frozen_changed": ' + "9" * 10_000 + "}",
    ],
    "frozen.json": ["[]", {"frozen_parameters": "many"}, {"frozen_changed": -1}],
    "start.json": ["[]", {"mask_seconds": "x"}, {"start": []}, {"start": {"generator": None}},
                   {"start": {"generator": {"path": 3}}}],
    "curve.json": ["{}", "null", '["text"]', "[{}]", "[1]", '[{"iteration": "0"}]', DEEP,
                   '[{"iteration": 0, "forget_accuracy": "half", "keep_accuracy": 1}]'],
    "model/pecker_fast.json": [
        "[", "[]", {"figures": None}, {"figures": []}, {"class_names": 3}, {"class_names": [1]},
        {"figures.training": None}, {"figures.training.machine": "H100"},
        {"figures.training.seconds": "x"}, {"figures.training.processes": 0},
        {"figures.start": []}, {"figures.iterations": 1.5},
    ],
    "evaluate.json": [
        "[]", "{}", {"format": 2}, {"fidelity": 1}, {"fidelity.fid": None}, {"classes": None},
        {"forget": 3}, {"forget": "airplane"}, {"override": -1}, {"versions": "2"},
        {"trained": None}, {"forget_entropy": None}, {"fidelity.real_count": "10"},
    ],
    "mask.safetensors": [b"\0" * 20, b""],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, contents in WRONG.items() for content in contents],
    ids=lambda part: str(part)[:40],
)
def test_wrong_files_are_named_in_one_short_line(tmp_path, name, content):
    run = write_run(tmp_path / "run", pecker(), curve=points(10, 5), judged=judgement())
    file = run / name
    if isinstance(content, dict):
        read, write = (
            (yaml.safe_load, yaml.safe_dump) if name == "config.yaml" else (json.loads, json.dumps)
        )
        values = read(file.read_text()) if file.exists() else {}
        for key, value in content.items():
            *sections, last = key.split(".")
            inner = values
            for section in sections:
                inner = inner[section]
            inner[last] = value
        content = write(values)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PeckerError) as refused:
        read_runs([run])
    message = str(refused.value)
    assert str(file) in message or "compare runs that erase a class" in message
    assert len(message) < 1000 and message.count("\n") == 0
