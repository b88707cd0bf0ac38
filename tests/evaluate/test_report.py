"""Reports of classes and of concepts: what they say when things went well, and when not."""

import json
from dataclasses import replace

import pytest
from pages import Page

from pecker_fast.evaluate.concept_report import concept_report
from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.forgetting import Evaluation
from pecker_fast.evaluate.intervals import Interval, Share
from pecker_fast.evaluate.page import Picture
from pecker_fast.evaluate.recognition import Outcome, Recognition
from pecker_fast.evaluate.reference import ClassFigures
from pecker_fast.evaluate.report import RunFacts, class_report
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.masks.verify import FrozenCheck

RUN = RunFacts(
    frozen=FrozenCheck(900, 0, 100, 99), mask="saliency", density=0.1, iterations=60, seed=3,
    backend="cpu", wall_s=12.345, stage_s={"erase": 10.0},
    machine={"device_name": "a processor", "cores": 2, "threads": 2}, versions={"torch": "2"},
    config={"mask.density": 0.1},
)  # fmt: skip
NAMES = ("circle", "square", "star")
TEACHER = ClassFigures(50, 0, 500, (0.94, 0.96, 0.99), (1.0, 2.0, 3.0), 200, 190)
AFTER = Evaluation(
    forget=2, override=0, forget_count=500, forget_accuracy=0.004, forget_probability=0.01,
    forget_entropy=0.2, override_accuracy=0.95, keep_count=1000, keep_accuracy=0.945,
    class_accuracy=(0.9, 0.96, 0.004), frechet=4.25, frechet_all=5.5, frechet_real_count=2000,
    sampler="one step", steps=1, seed=3, class_counts=(500, 500, 500), seen_as=(475, 23, 2),
    frechet_interval=Interval(4.0, 4.5),
)  # fmt: skip
CURVE = (CurvePoint(0, 0.9, 0.5), CurvePoint(60, 0.0, 0.93))
CONCEPT = {
    "concept": "sneaker", "override": "bag", "model": "a pipeline", "recipe": "object",
    "mask_digest": "3f" * 32, "patch_bytes": 231_000, "unet_bytes": 1_720_000,
    "samplers": (Sampler(25, 7, guidance=4.5), Sampler(1, 7, 625)),
}  # fmt: skip


def recognition(trained, held_back, override, neighbours, others):
    near, far = Share(neighbours, 100), Share(others, 100)
    told, untold = Share(trained, 200), Share(held_back, 200)
    seen = {"Bag": override, "Sneaker": trained + held_back}
    groups = {
        "forget_trained": told, "forget_held_back": untold, "neighbours": near, "others": far,
    }  # fmt: skip
    return Recognition(
        groups, {"Boot": near, "Bag": far}, {**seen, "Boot": 400 - sum(seen.values())}
    )


def outcome(*after):
    before = recognition(196, 192, 0, 90, 92)
    return Outcome("concept", "Sneaker", "Bag", before, recognition(*after))


OUTCOME = outcome(0, 3, 391, 90, 94)


RUN_KEYS = [
    "frozen_parameters", "frozen_changed", "frozen_changed_in", "salient_parameters",
    "salient_changed", "digests", "mask", "density", "iterations", "resumed_at", "wall_s",
    "training_s", "processes", "stage_s", "backend", "seed", "machine", "versions", "config",
]  # fmt: skip


def written(report, folder, pictures=()):
    report.write(folder, pictures)
    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Page(folder / "report.html"), figures


def bad(page):
    return [text for text, look in page.looks.items() if "bad" in look]


def test_a_class_that_is_gone(tmp_path):
    report = class_report(RUN, NAMES, TEACHER, AFTER, CURVE)
    page, figures = written(report, tmp_path)
    assert report.gone and report.kept and not bad(page)
    assert "star is gone: 2 of 500 images" in page.text and "900 of 1,000 parameters" in page.text
    cells = [row[1:] for row in page.tables["Figures"]]
    assert ["99.0 % (97.7 to 99.6), 495 of 500", "0.4 % (0.1 to 1.4), 2 of 500"] in cells
    assert ["3.00", "4.25 (4.00 to 4.50)"] in cells and ["50", "1"] in cells
    assert any(before == "" and after.startswith("95.0 %") for before, after in cells)
    assert "95 % bound: 1.4 %" in report.headline and "1.4 times as far" in report.kept_sentence
    seen = page.tables["What is drawn where star is asked for"]
    assert [row[0] for row in seen[1:]] == ["circle", "square", "star"]
    kept = page.tables["Classes that are to be kept"]
    assert [row[0] for row in kept[1:]] == ["circle", "square"]
    expected = {
        "forget_accuracy_before": 0.99, "forget_accuracy_after": 0.004,
        "keep_accuracy_teacher": pytest.approx(0.95), "keep_accuracy_after": 0.945,
        "forget_interval_after": list(Share(2, 500).interval), "gone": True,
        "gone_limit": 0.02, "kept": True, "frechet_teacher": 3.0, "frechet_after": 4.25,
        "frozen_parameters": 900, "frozen_changed": 0, "forget": "star", "override": "circle",
        "classes": list(NAMES),
        "wall_s": 12.35, "config": {"mask.density": 0.1}, "teacher_figures": "measured",
    }  # fmt: skip
    assert {key: figures[key] for key in expected} == expected
    assert [point["iteration"] for point in figures["curve"]] == [0, 60]
    assert figures["curve"][0]["forget_interval"] is None  # nobody says of how many images
    assert list(figures) == [
        "summary", "forget_accuracy_before", "keep_accuracy_teacher", "forget_accuracy_after",
        "keep_accuracy_after", "forget_interval_before", "keep_interval_before",
        "forget_interval_after", "keep_interval_after", "gone", "gone_limit", "kept", "kept_limit",
        "frechet_teacher", "frechet_after", "classes", "forget", "override",
        "after", "teacher", "teacher_figures", "images", "real", "curve", *RUN_KEYS,
    ]  # fmt: skip
    assert figures["after"]["class_accuracy"] == [0.9, 0.96, 0.004]


def test_real_images_and_a_second_judge(tmp_path):
    real = ClassFigures(
        0, 0, 500, (0.97, 0.96, 0.98), (0.1, 0.2, 0.3), 200, 199, source="real ones"
    )
    after = replace(AFTER, second=AFTER)
    report = class_report(RUN, NAMES, TEACHER, after, real=real)
    page, figures = written(report, tmp_path)
    header, *rows = page.tables["Figures"]
    assert header[3] == "Real test images" and {len(row) for row in rows} == {4}
    assert rows[0][3].endswith("490 of 500")
    assert report.gone and figures["real"]["source"] == "real ones"
    assert figures["after"]["second"]["keep_accuracy"] == AFTER.keep_accuracy
    after = replace(after, second=replace(AFTER, forget_accuracy=0.05))
    assert class_report(RUN, NAMES, TEACHER, after).gone is False  # both must say so


def test_a_concept_that_is_gone(tmp_path):
    report = concept_report(RUN, **CONCEPT, outcome=OUTCOME)
    page, figures = written(report, tmp_path)
    assert report.gone and report.kept is None and not bad(page)  # 200 images show no 3 %
    assert report.headline.startswith("Sneaker is gone: 3 of 400 images")
    cells = [row[1:] for row in page.tables["Figures"]]
    told = ["98.0 % (95.0 to 99.2), 196 of 200", "0.0 % (0.0 to 1.9), 0 of 200"]
    assert told in cells and ["50", "1"] in cells
    assert figures["figures"]["forget_held_back_after"] == 0.015
    assert figures["figures"]["keep_difference"] == pytest.approx(0.01)
    boot = figures["figures"]["before"]["classes"]["Boot"]
    assert (boot["hits"], boot["count"]) == (90, 100)
    assert (figures["patch_share"], figures["mask_digest"]) == (0.1343, "3f" * 32)
    assert figures["sampling"] == {
        "before": {"steps": 25, "guidance": 4.5, "negative": "", "evaluations": 50},
        "after": {"steps": 1, "t_init": 625, "evaluations": 1},
        "seed": 7,
    }
    assert list(figures) == [
        "summary", "concept", "override", "figures", "patch_bytes", "unet_bytes",
        "patch_share", "model", "recipe", "mask_digest", "sampling", *RUN_KEYS,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("forget", "keep", "gone", "kept"),
    [(0.022, 0.945, False, True), (0.004, 0.915, True, False), (0.016, 0.93, None, None)],
)
def test_what_went_wrong_is_marked(tmp_path, forget, keep, gone, kept):
    after = replace(AFTER, forget_accuracy=forget, keep_accuracy=keep)
    teacher = replace(TEACHER, class_accuracy=(0.93, 0.97, 0.99))
    report = class_report(RUN, NAMES, teacher, after)
    page, _ = written(report, tmp_path)
    assert (report.gone, report.kept) == (gone, kept)
    marked = {report.headline: gone, report.kept_sentence: kept}
    assert bad(page) == [text for text, verdict in marked.items() if verdict is False]
    run = replace(RUN, frozen=FrozenCheck(900, 7, 100, 99))
    report = concept_report(run, **CONCEPT, outcome=outcome(0, 12, 91, 80, 85))
    page, _ = written(report, tmp_path)
    assert (report.gone, report.kept) == (False, False)
    assert bad(page) == [report.headline, report.kept_sentence, run.frozen.sentence()]


def test_what_nobody_measured(tmp_path):
    after = replace(AFTER, frechet=None, override=None, override_accuracy=None)
    teacher = replace(TEACHER, frechet_without=())
    run = replace(RUN, frozen=FrozenCheck(0, 0, 1000, 999), resumed_at=40)
    page, figures = written(class_report(run, NAMES, teacher, after), tmp_path)
    assert figures["frechet_after"] is None and figures["override"] is None
    assert "from 40 on" in dict(page.tables["Conditions"])["Iterations"]
    samplers = (Sampler(25, guidance=1, negative="a, 'b'"), Sampler())
    report = concept_report(RUN, **{**CONCEPT, "override": "", "samplers": samplers})
    page, figures = written(report, tmp_path)
    assert (report.gone, report.kept, figures["figures"]) == (None, None, None)
    assert figures["sampling"]["before"]["evaluations"] == 25 and "a, 'b'" in page.text


def test_names_are_text_not_markup_and_pictures_are_part_of_the_page(tmp_path):
    name = "<script>$x$</script>"
    pictures = [Picture(b"\x89PNG", title, "A caption.") for title in ("First", "Second")]
    for report in (
        class_report(RUN, ("a", "b", name), TEACHER, AFTER),
        concept_report(RUN, **{**CONCEPT, "concept": name}, outcome=OUTCOME),
    ):
        page, _ = written(report, tmp_path, pictures)
        assert "script" not in page.tags and name in page.text and page.tags.count("img") == 2
        assert all(link.startswith("data:image/png;base64,") for link in page.links)
