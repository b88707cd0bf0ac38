"""What `compare` reads of a run, what it marks as not comparable, and what it leaves empty."""

import csv
import io
from dataclasses import replace

import pytest
from pages import Page
from run_folders import (
    EVALUATION,
    FIDELITY,
    MACHINE,
    baseline,
    judgement,
    pecker,
    points,
    teacher,
    write_json,
    write_run,
)

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.comparison import (
    COLUMNS,
    MISSING,
    Comparison,
    Run,
    Start,
    write_comparison,
)
from pecker_fast.evaluate.comparison_reading import read_runs
from pecker_fast.evaluate.judgement import Judgement


def row(comparison, index):
    """A row as {title: words}."""
    titles = [column.title for column in comparison.columns]
    return dict(zip(titles, comparison.rows()[index], strict=True))


def csv_rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_run_with_everything(tmp_path):
    path = write_run(
        tmp_path / "run", pecker(forget="Airplane", override=1), curve=points(1000, 120),
        judged=judgement(replace(EVALUATION, forget_accuracy=0.002)),
    )  # fmt: skip
    (run,) = read_runs([path])
    assert (run.name, run.method, run.mask, run.density) == ("run", "PECKER", "saliency", 0.1)
    assert (run.forget, run.seed) == ("airplane", 0)
    assert (run.iterations, run.planned, run.wall_s, run.device) == (1000, 1000, 120.0, "H100")
    assert run.fidelity == FIDELITY and len(run.curve) == 3
    shown = row(Comparison([run]), 0)
    titles = [column.title for column in COLUMNS if column.title]
    assert list(shown) == titles and MISSING not in shown.values()
    assert (shown["Steps"], shown["Wall time, min"]) == ("1,000", "2.0")
    assert shown["UA, %"] == "99.80 (98.88 to 99.96)"
    (values,) = csv_rows(Comparison([run]).to_csv())
    assert float(values["unlearning_accuracy"]) == 1 - 0.002
    assert float(values["unlearning_accuracy_low"]) == pytest.approx(0.9888, abs=1e-4)
    assert EVALUATION.judge in values["UA, P(class), entropy, others kept"]
    assert FIDELITY.real_digest[:12] in values["FID, KID, precision, recall"]


def test_what_nobody_measured_is_empty_and_not_zero(tmp_path):
    path = write_run(tmp_path / "run", pecker(), report=False, figures={"iterations": 0})
    (run,) = read_runs([path])
    shown = row(Comparison([run]), 0)
    assert shown["Steps"] == "0" and shown["Mask"] == "saliency"
    assert list(shown) == ["Run", "Method", "Mask", "Steps"]
    measured = Run(name="b", method="", evaluation=EVALUATION)
    shown = row(Comparison([run, measured]), 0)
    assert {shown[title] for title in ("UA, %", "Sampler")} == {MISSING} and "FID" not in shown
    (values,) = csv_rows(Comparison([run]).to_csv())
    assert (values["iterations"], values["wall_s"], values["fid"]) == ("0", "", "")


METHODS = [
    ("PECKER", pecker()), ("PECKER", pecker(**{"mask.kind": "random"})),
    ("SFD", pecker(**{"mask.kind": "full"})), ("SalUn", baseline("random_label")),
    ("random labels", baseline("random_label", mask={"kind": "full"})),
    ("NegGrad", baseline("negative_gradient", mask={"kind": "full"})),
    ("fine-tuning", baseline("fine_tune", mask={"kind": "full"})), ("ESD", baseline("esd")),
    ("retraining", teacher()), ("training", teacher(without=None)),
]  # fmt: skip


@pytest.mark.parametrize(("method", "config"), METHODS)
def test_methods_are_called_as_in_the_literature(tmp_path, method, config):
    (run,) = read_runs([write_run(tmp_path / "run", config, report=False)])
    assert run.method == method
    assert run.forget == (None if method == "training" else "airplane")


def test_a_file_of_evaluate_is_a_row(tmp_path):
    path = write_json(tmp_path / "original.json", judgement(trained={"kind": "teacher"}).to_dict())
    (run,) = read_runs([path])
    assert (run.name, run.method, run.forget) == ("original", "teacher, as it is", "airplane")
    assert run.iterations is None and run.evaluation == EVALUATION


def test_what_evaluate_writes_comes_back(tmp_path):
    for written in (judgement(), judgement(evaluation=None), judgement(fidelity=None)):
        values = {**written.to_dict(), "a figure of a later version": 1}
        found = Judgement.read(write_json(tmp_path / "e.json", values))
        assert found.to_dict() == written.to_dict()


def test_a_run_that_goes_on_is_where_its_curve_is(tmp_path):
    path = write_run(tmp_path / "a", pecker(), curve=points(500, 40), report=False)
    (path / "model" / "pecker_fast.json").unlink()
    write_json(path / "start.json", {"start": {"generator": start_facts()}})
    counts = {"frozen_parameters": 90, "frozen_changed": 0, "salient_parameters": 10}
    write_json(path / "frozen.json", counts)
    (run,) = read_runs([path])
    assert (run.iterations, run.planned, run.wall_s) == (500, 1000, 40.0)
    assert (run.start.iterations, run.method) == (500, "PECKER, two stages")
    assert (run.density, run.frozen_changed) == (0.1, 0)
    assert Comparison([run]).unfinished() == ["a: 500 of 1,000 steps are done."]


def test_what_a_run_was_trained_on(tmp_path):
    figures = {"training": {"iterations": 7, "processes": 4, "machine": {"device_name": "H200"}}}
    path = write_run(tmp_path / "b", teacher(), report=False, figures=figures)
    (run,) = read_runs([path])
    assert (run.iterations, run.device, run.mask) == (7, "4 x H200", None)


def test_the_class_that_a_retrained_model_never_saw(tmp_path):
    path = write_run(tmp_path / "a", teacher(), report=False, judged=judgement())
    assert read_runs([path])[0].evaluation == EVALUATION
    path = write_run(tmp_path / "b", pecker(forget="bird", override=1), judged=judgement())
    with pytest.raises(PeckerError, match="how 'airplane' was forgotten, the run forgets 'bird'"):
        read_runs([path])
    path = write_run(tmp_path / "c", teacher(without=None), report=False, judged=judgement())
    assert read_runs([path])[0].forget == "airplane"


def test_runs_are_named_by_their_paths_where_their_names_are_the_same(tmp_path):
    paths = [write_run(tmp_path / name, pecker()) for name in ("x/run.1", "y/run.1", "y/other")]
    assert [run.name for run in read_runs(paths)] == [*map(str, paths[:2]), "other"]
    with pytest.raises(PeckerError, match="given twice"):
        read_runs([paths[0], paths[0] / ".." / "run.1"])


def test_figures_on_other_grounds_are_marked():
    runs = [
        Run(name="a", method="", wall_s=5, device="H100", evaluation=EVALUATION,
            fidelity=FIDELITY),
        Run(name="b", method="", wall_s=5, device="H100",
            evaluation=replace(EVALUATION, judge="another", sampler="50 DDIM steps"),
            fidelity=replace(FIDELITY, source="elsewhere", real_source="by another path")),
        Run(name="c", method="", wall_s=5, device="H200",
            evaluation=replace(EVALUATION, keep_count=900), fidelity=replace(FIDELITY, count=900)),
        Run(name="d", method="", fidelity=replace(FIDELITY, real_digest="other")),
        Run(name="e", method="", fidelity=replace(FIDELITY, weights_sha256="other")),
    ]  # fmt: skip
    comparison = Comparison(runs)
    every = [row(comparison, index) for index in range(5)]

    def letters(title):
        return "".join(shown[title][-2] if shown[title].endswith("]") else "-" for shown in every)

    assert letters("UA, %") == letters("Others kept, %") == letters("Fréchet") == "abc--"
    # The path of the real images does not matter, their content does; IS does without them.
    assert letters("FID") == letters("Recall") == "aabcd"
    assert letters("IS") == "aabac"
    assert letters("Wall time, min") == "aab--"
    assert letters("Run") == letters("Sampler") == "-----"
    notes = comparison.notes()
    assert notes["Wall time"] == {"devices H100": "a", "devices H200": "b"}
    judged = notes["UA, P(class), entropy, others kept"]
    assert judged["judge another, forget count 500, keep count 1000"] == "b"
    assert Comparison(runs[:1] * 2).notes() == {}


def test_what_does_not_belong_together_is_refused(tmp_path):
    runs = [write_run(tmp_path / name, pecker(forget=name)) for name in ("airplane", "bird")]
    runs.append(write_run(tmp_path / "c", teacher(without=None), report=False))
    assert Comparison(read_runs([runs[0], runs[2]])).forget == "airplane"
    with pytest.raises(PeckerError, match="forgets 'bird'"):
        Comparison(read_runs(runs))
    figures = {"iterations": 1000, "mask_digest": "d1"}
    same = judgement(trained={"kind": "generator", **figures})
    run = write_run(tmp_path / "a", pecker(), judged=same, figures=figures)
    assert read_runs([run])[0].fidelity == FIDELITY
    write_json(run / "evaluate.json", judgement(trained={**figures, "iterations": 500}).to_dict())
    with pytest.raises(PeckerError, match="iterations 500, now 1000"):
        read_runs([run])


def written(runs, folder):
    """The page, and the rows of curves.csv."""
    write_comparison(Comparison(runs), folder)
    assert (folder / "comparison.csv").read_text() == Comparison(runs).to_csv()
    return Page(folder / "comparison.html"), csv_rows((folder / "curves.csv").read_text())


def test_the_page_and_the_tables(tmp_path, figures):
    hostile = Run(
        name="<script>$x$</script>", method="a & b", forget="cat", iterations=10,
        wall_s=50_000.0, evaluation=EVALUATION, curve=tuple(points(10, 50_000, frechet=(9, 8, 7))),
    )  # fmt: skip
    short = Run(name="=1+1", method="", iterations=10, wall_s=1.0, evaluation=EVALUATION)
    level = Run(name="original", method="", evaluation=EVALUATION)
    page, curves = written([hostile, short, level], tmp_path)
    assert "script" not in page.tags and "a & b" in page.text
    assert all(link.startswith("data:") for link in page.links)  # nothing is loaded from elsewhere
    (table,) = page.tables.values()
    assert [row[0] for row in table] == ["Run", hostile.name, "=1+1", "original"]
    assert len(figures) == page.tags.count("img") == 3  # forgetting, keeping, Fréchet
    for figure in figures:
        for ax in figure.axes:
            line, end, _, other_end, across = ax.lines
            assert (end.get_marker(), other_end.get_marker()) == ("D", "D")
            assert len(line.get_xdata()) == 3 and len(set(across.get_ydata())) == 1
    assert [row["iteration"] for row in curves] == ["0", "5", "10"]
    assert (curves[1]["run"], curves[1]["wall_s"]) == (hostile.name, "25000.0")
    names = [row["run"] for row in csv_rows((tmp_path / "comparison.csv").read_text())]
    assert names == [hostile.name, "'=1+1", "original"]  # no formula for a spreadsheet


def start_facts(path="stage1", **changes):
    """What a model's figures say of a network that its run started from."""
    facts = {
        "path": path, "kind": "generator", "iterations": 500, "seconds": 60.0, "processes": 1,
        "device_name": "H100", "fingerprint": "ab",
    }  # fmt: skip
    return {**facts, **changes}


def staged_run(folder, starts, config=None, **training):
    """A run that was given networks to start from."""
    figures = {
        "iterations": 1000, "mask_digest": "d1", "start": starts,
        "training": {"seconds": 120.0, "machine": MACHINE, "processes": 1, **training},
    }  # fmt: skip
    return write_run(folder, config or pecker(), figures=figures, curve=points(1000, 120.0))


def test_what_a_run_started_from_counts(tmp_path):
    stage_1 = {"generator": start_facts(), "pseudo_score": start_facts(kind="pseudo_score")}
    staged = staged_run(tmp_path / "staged", stage_1)
    runs = read_runs([write_run(tmp_path / "plain", pecker()), staged])
    assert runs[0].start is None
    assert runs[1].start == Start(path="stage1", iterations=500, wall_s=60.0, device="H100")
    before, shown = (row(Comparison(runs), index) for index in (0, 1))
    assert (before["Wall time, min"], shown["Method"]) == ("2.0", "PECKER, two stages")
    assert (shown["Steps"], shown["Wall time, min"]) == ("1,500", "3.0")
    before, values = csv_rows(Comparison(runs).to_csv())
    names = ("start", "start_iterations", "start_wall_s", "iterations", "wall_s")
    assert [values[name] for name in names] == ["stage1", "500", "60.0", "1000", "120.0"]
    assert [before[name] for name in names] == ["", "", "", "1000", "120.0"]


def test_a_two_stage_line_begins_where_its_first_stage_ended(tmp_path, figures):
    staged = read_runs([staged_run(tmp_path / "run", {"generator": start_facts()})])
    written(staged, tmp_path)
    time, steps = figures[0].axes
    for ax, begin, end in ((time, 1, 3), (steps, 500, 1500)):
        line, diamond = ax.lines
        assert (line.get_xdata()[0], line.get_xdata()[-1]) == (begin, end)
        assert list(diamond.get_xdata()) == [end]


OLDER = start_facts("b", seconds=40.0, device_name="H200", start={"generator": start_facts("a")})
UNTIMED = {"path": "c", "kind": "generator", "fingerprint": "ab"}  # of a converted checkpoint


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([start_facts(kind="teacher")], None),
        ([start_facts("a"), start_facts("b", seconds=40.0)], ("a, then b", 1000, 100.0, "H100")),
        ([OLDER], ("a, then b", 1000, 100.0, "H100, then H200")),
        ([UNTIMED], ("c", None, None, "unknown")),
    ],
)
def test_starts_of_several_runs(tmp_path, starts, expected):
    given = dict(zip(("generator", "pseudo_score"), starts, strict=False))
    comparison = Comparison(read_runs([staged_run(tmp_path / "run", given)]))
    start = comparison.runs[0].start
    assert expected == (start and (start.path, start.iterations, start.wall_s, start.device))
    if starts == [UNTIMED]:
        shown = row(comparison, 0)
        assert "Steps" not in shown and "Wall time, min" not in shown
