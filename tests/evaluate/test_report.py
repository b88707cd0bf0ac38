"""The report: what it says when things went well, when they did not, and with odd input."""

import json
from dataclasses import replace

import pytest

from pecker_fast.evaluate.curve import CurvePoint
from pecker_fast.evaluate.forgetting import Evaluation, TeacherFigures
from pecker_fast.evaluate.report import ErasureReport, Picture
from pecker_fast.masks.verify import FrozenCheck


@pytest.fixture
def report():
    after = Evaluation(
        forget=2,
        override=0,
        forget_count=500,
        forget_accuracy=0.004,
        forget_probability=0.01,
        forget_entropy=0.2,
        override_accuracy=0.95,
        keep_count=1000,
        keep_accuracy=0.93,
        class_accuracy=(0.9, 0.96, 0.004),
        frechet=4.25,
        frechet_all=5.5,
        frechet_real_count=2000,
        sampler="one step",
        steps=1,
        seed=3,
    )
    return ErasureReport(
        class_names=("circle", "square", "star"),
        teacher=TeacherFigures(50, 0, 500, (0.94, 0.96, 0.99), (1.0, 2.0, 3.0), 200, 190),
        after=after,
        frozen=FrozenCheck(900, 0, 100, 99),
        mask_kind="saliency",
        density=0.1,
        iterations=60,
        seed=3,
        backend="cpu",
        wall_s=12.345,
        stage_s={"erase": 10.0},
        machine={"device_name": "a processor", "cores": 2, "threads": 2},
        versions={"torch": "2"},
        config={"mask.density": 0.1},
        curve=[CurvePoint(0, 0.9, 0.5), CurvePoint(60, 0.0, 0.93)],
    )


def page_of(report, tmp_path, pictures=()):
    report.write(tmp_path, pictures)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_figures_in_json(report, tmp_path):
    page_of(report, tmp_path)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["forget_accuracy_before"] == 0.99
    assert figures["forget_accuracy_after"] == 0.004
    assert figures["keep_accuracy_teacher"] == pytest.approx(0.95)
    assert figures["keep_accuracy_after"] == 0.93
    assert (figures["frechet_teacher"], figures["frechet_after"]) == (3.0, 4.25)
    assert (figures["frozen_parameters"], figures["frozen_changed"]) == (900, 0)
    points = [(p["iteration"], p["forget_accuracy"], p["keep_accuracy"]) for p in figures["curve"]]
    assert points == [(0, 0.9, 0.5), (60, 0.0, 0.93)]


def test_it_says_that_the_class_is_gone_and_the_others_kept(report, tmp_path):
    assert report.headline().startswith("star is gone: 2 of 500 images")
    assert report.kept_sentence().startswith("The other 2 classes are kept: 93.0 % of 1,000")
    page = page_of(report, tmp_path)
    assert 'class="bad"' not in page and "900 of" in page


def test_it_says_that_the_class_is_not_gone(report, tmp_path):
    failed = replace(report, after=replace(report.after, forget_accuracy=0.022))
    assert failed.headline().startswith("star is not gone: 11 of 500 images")
    assert '<h1 class="bad">star is not gone' in page_of(failed, tmp_path)


def test_it_says_that_the_others_have_suffered(report, tmp_path):
    failed = replace(report, after=replace(report.after, keep_accuracy=0.91))
    assert "have suffered: 91.0 %" in failed.kept_sentence()
    assert 'class="lead bad"' in page_of(failed, tmp_path)


def test_it_does_not_hide_a_frozen_parameter_that_moved(report, tmp_path):
    failed = replace(report, frozen=FrozenCheck(900, 7, 100, 99))
    page = page_of(failed, tmp_path)
    assert 'class="frozen bad"' in page and "bit by bit, 7 of them" in page


def test_a_full_mask(report, tmp_path):
    page = page_of(replace(report, frozen=FrozenCheck(0, 0, 1000, 999)), tmp_path)
    assert "No parameter was frozen" in page


def test_without_statistics_and_override(report, tmp_path):
    after = replace(report.after, frechet=None, frechet_all=None, frechet_real_count=None)
    after = replace(after, override=None, override_accuracy=None)
    teacher = replace(report.teacher, frechet_without=())
    page = page_of(replace(report, after=after, teacher=teacher), tmp_path)
    assert page.count("not measured") == 2
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["frechet_after"] is None and figures["override"] is None


def test_a_resumed_run_says_so(report, tmp_path):
    assert "the wall time is from" not in page_of(report, tmp_path)
    assert "60 (the wall time is from 40 on)" in page_of(replace(report, resumed_at=40), tmp_path)


def test_class_names_are_text_not_markup(report, tmp_path):
    page = page_of(replace(report, class_names=("a", "b", "<script>x</script>")), tmp_path)
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_pictures_are_embedded(report, tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    page = page_of(report, tmp_path, [Picture(tmp_path / "p.png", "A title", "A caption.")])
    assert "data:image/png;base64,iVBORw==" in page
    assert "A title" in page and "A caption." in page
