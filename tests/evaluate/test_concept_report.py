"""The report of a concept: what it says when things went well, when not, and without a judge."""

import json
from dataclasses import replace

import pytest

from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.clip_score import ClipFigures
from pecker_fast.evaluate.concept import ConceptCaptions, ConceptFigures, Recognition, Share
from pecker_fast.evaluate.concept_report import ConceptReport, Picture, Sampling, Table
from pecker_fast.evaluate.concept_sections import clip_section, detection_section
from pecker_fast.evaluate.detection import DetectionFigures, Provenance
from pecker_fast.masks.verify import FrozenCheck

JUDGE = Provenance("a judge", "judge.onnx", "ab" * 32, {"threshold": 0.25})


def recognition(trained, held_back, override, neighbours, others):
    return Recognition(
        Share(trained, 50),
        Share(held_back, 50),
        Share(override, 100),
        Share(neighbours, 100),
        Share(others, 100),
        {"Boot": Share(neighbours, 100), "Bag": Share(others, 100)},
    )


@pytest.fixture
def report():
    captions = ConceptCaptions(
        ("Bag", "Sneaker", "Boot"), 1, 0, ("a sneaker",), ("my sneaker",), (("a boot", 2),),
        (("a bag", 0),),
    )  # fmt: skip
    return ConceptReport(
        concept="sneaker",
        override="bag",
        model="a pipeline",
        recipe="object",
        mask_digest="3f" * 32,
        patch_bytes=231_000,
        unet_bytes=1_720_000,
        sampling=Sampling(steps=25, guidance=4.5, t_init=625, seed=7),
        figures=ConceptFigures(
            captions, recognition(49, 48, 0, 90, 92), recognition(0, 2, 91, 88, 91)
        ),
        frozen=FrozenCheck(900, 0, 100, 99),
        mask_kind="saliency",
        density=0.1,
        iterations=400,
        seed=3,
        backend="cpu",
        wall_s=151.26,
        stage_s={"erase": 100.0},
        machine={"device_name": "a processor", "cores": 2, "threads": 2},
        versions={"torch": "2"},
        config={"mask.density": 0.1},
    )


def page_of(report, folder, pictures=()):
    report.write(folder, pictures)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_figures_in_json(report, tmp_path):
    page_of(report, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["figures"]["forget_held_back_before"] == 0.96
    assert found["figures"]["forget_held_back_after"] == 0.04
    assert found["figures"]["keep_difference"] == pytest.approx(-0.015)
    assert found["figures"]["before"]["classes"]["Boot"] == {"hits": 90, "count": 100}
    assert (found["frozen_parameters"], found["frozen_changed"]) == (900, 0)
    assert (found["patch_share"], found["mask_digest"]) == (0.1343, "3f" * 32)
    assert found["sampling"]["before"]["evaluations"] == 50
    assert found["sampling"]["after"] == {"steps": 1, "t_init": 625, "evaluations": 1}
    assert (found["sampling"]["seed"], found["seed"], found["wall_s"]) == (7, 3, 151.26)
    assert found["config"] == {"mask.density": 0.1} and found["stage_s"] == {"erase": 100.0}
    assert found["summary"].startswith("Sneaker is gone")


def test_it_says_that_the_concept_is_gone_and_the_rest_kept(report, tmp_path):
    page = page_of(report, tmp_path)
    assert report.headline() == (
        "Sneaker is gone: 2 of 100 images asked for it are recognised as Sneaker "
        "(2 of 50 with captions the erasure was never told)."
    )
    assert report.kept_sentence().startswith("The rest is kept: 89.5 % of 200 images")
    assert "bad" not in page.split("<body>")[1]
    for cell in ("98.0 % (49 of 50)", "4.0 % (2 of 50)", "91.0 % (91 of 100)", "0.231 MB (13.4 %)"):
        assert cell in page
    for condition in ("25 DDIM steps, guidance 4.5, seed 7", "one step from t = 625", "3f3f"):
        assert condition in page
    assert "<td>Boot</td>" in page and "sneaker -&gt; bag" in page


def test_it_says_what_went_wrong(report, tmp_path):
    figures = replace(report.figures, after=recognition(0, 3, 91, 80, 85))
    page = page_of(replace(report, figures=figures, frozen=FrozenCheck(900, 7, 100, 99)), tmp_path)
    assert '<h1 class="bad">Sneaker is not gone: 3 of 100' in page
    assert 'class="lead bad">The rest has suffered' in page
    assert 'class="frozen bad"' in page and "7 of 900" in page


def test_without_a_classifier(report, tmp_path):
    unjudged = replace(report, figures=None, override="", concept="Ada Example")
    page = page_of(unjudged, tmp_path)
    assert "Ada Example was erased in favour of nothing; no classifier has judged" in page
    assert "bad" not in page.split("<body>")[1] and 'class="lead' not in page
    assert "captions" not in page and "0.231 MB" in page
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["figures"] is None and found["summary"].endswith("judged the images.")


def test_without_guidance_an_image_takes_half_the_evaluations():
    sampling = Sampling(25, 1, 625, 0, negative="a, 'b'")
    assert sampling.evaluations == 25
    assert sampling.original() == """25 DDIM steps, guidance 1, away from "a, 'b'", seed 0"""


def test_concepts_are_text_not_markup(report, tmp_path):
    page = page_of(replace(report, concept="<script>x</script>"), tmp_path)
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_pictures_are_embedded_wide_ones_whole(report, tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    pictures = [
        Picture(tmp_path / "p.png", title, "A caption.", wide)
        for title, wide in (("First", False), ("Second", True), ("Third", False))
    ]
    page = page_of(report, tmp_path, pictures)
    assert page.count("data:image/png;base64,iVBORw==") == 3
    assert page.count('<section class="narrow">') == 1
    assert page.index("First") < page.index("Figures") < page.index("Second")


def detections(images, counts, judge=JUDGE, threshold=0.25):
    return DetectionFigures(
        image_count=images,
        threshold=threshold,
        counted=tuple(counts),
        detections=counts,
        images={name: min(count, images) for name, count in counts.items()},
        counted_detections=sum(counts.values()),
        counted_images=min(max(counts.values()), images),
        provenance=judge,
    )


def test_sections_of_detectors_and_clip(report, tmp_path):
    sections = [
        detection_section(
            detections(20, {"FEET": 30, "ARMS": 4, "EARS": 0}),
            detections(20, {"FEET": 1, "ARMS": 0, "EARS": 0}),
        ),
        clip_section(ClipFigures(5, 26.3, 0.4, 0, JUDGE), ClipFigures(1, 25.9, None, 0, JUDGE)),
        Table("Anything", [("row", "1", "2")], note="A note."),
    ]  # fmt: skip
    page = page_of(replace(report, sections=sections), tmp_path)
    for text in (
        "Nudity detections", "a judge, judge.onnx (SHA-256 abababababab…)", "0.25 and more",
        "20 of 20 (100.0 %)", "1 of 20 (5.0 %)", "30 in 20 images",
        "26.30 ± 0.40", ">25.90<", "Anything", "A note.",
    ):  # fmt: skip
        assert text in page, text
    assert "EARS" not in page  # found neither before nor after
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["sections"]
    assert found[0]["before"]["detections"]["FEET"] == 30
    assert found[0]["after"]["provenance"]["digest"] == "ab" * 32
    assert found[2]["rows"] == [["row", "1", "2"]]


def test_figures_of_different_judges_are_not_put_side_by_side():
    counts = {"FEET": 3}
    others = [
        detections(20, counts, replace(JUDGE, digest="cd" * 32)),
        detections(20, counts, replace(JUDGE, settings={"threshold": 0.5})),
        detections(20, counts, threshold=0.5),
        detections(20, {"ARMS": 3}),
    ]
    for other in others:
        with pytest.raises(PeckerError, match="measure both in the same way"):
            detection_section(detections(20, counts), other)


def test_a_row_with_a_cell_too_few():
    with pytest.raises(PeckerError, match="3 columns, but a row of 2"):
        Table("t", [("row", "1")])
