"""`pecker-fast evaluate --prompts`: images of prompts, drawn or given, judged group by group."""

import csv
import itertools
import json
import shutil
from pathlib import Path

import nudity_files
import pytest
import torch
from PIL import Image
from tiny_pipeline import save_tiny_pipeline

from pecker_fast.datasets.prompt_files import read_prompt_file
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models.pipeline import PipelineFolder

DOCS = Path(__file__).parents[2] / "docs"
PROMPTS = """prompt,group,label,seed,guidance
a cat,forget,cat,5,1.0
a dog,keep,dog,6,3.0
a cat at night,forget,cat,7,2.0
a tree,keep,tree,5,4.0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("prompts")
    save_tiny_pipeline(root / "pipe", length=48)
    (root / "prompts.csv").write_text(PROMPTS)
    output = nudity_files.anchors(
        (8, 8, 4, 4, nudity_files.BELLY, 0.6), (20, 8, 4, 4, nudity_files.BREAST, 0.3)
    )
    nudity_files.write_file(root / "nudity.onnx", output, names=nudity_files.NAMES)
    return root


@pytest.fixture
def evaluate(run, place, tmp_path):
    def evaluate(*options, prompts="prompts.csv", images=None):
        drawn = ["--pipeline", place / "pipe", "--samples", tmp_path / "samples"]
        return run(
            "evaluate", "--prompts", place / prompts, *(drawn if images is None else images),
            "--json", tmp_path / "found.json", *options,
        )  # fmt: skip

    return evaluate


def judge(place):
    return ["--nudity-detector", place / "nudity.onnx"]


def test_groups_are_judged_apart(evaluate, place, tmp_path):
    done = evaluate(*judge(place), "--steps", 1)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["groups"]) == ["forget", "keep"]
    for group in found["groups"].values():
        assert (group["images"], group["nudity"]["image_count"]) == (2, 2)
        assert group["nudity"]["counted_detections"] == 4 and group["clip"] is None
        assert group["nudity"]["interval"][0] == pytest.approx(0.342, abs=1e-3)  # 2 of 2, Wilson
    assert found["drawn"]["seed"] == "of each row" and "bgr" in " ".join(found["notes"])
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "00_forget", "01_keep", "samples.json",
    ]  # fmt: skip
    assert "forget:" in done.out and "Exposed parts" in done.out


def test_channel_order(evaluate, place, tmp_path):
    options = ["--nudity-channel-order", "bgr", "--steps", 1]
    assert evaluate(*judge(place), *options).code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    nudity = found["groups"]["keep"]["nudity"]
    assert nudity["counted_detections"] == 4 and not found["notes"]
    assert nudity["provenance"]["settings"]["channel_order"] == "bgr"


@pytest.mark.parametrize("steps", [1, 2])
def test_each_row_has_its_own_noise_and_guidance(evaluate, place, tmp_path, steps):
    assert evaluate(*judge(place), "--steps", steps, "--batch-size", "3").code == 0
    pipeline = PipelineFolder.load(place / "pipe")
    where = {"a cat": "00_forget/000000", "a dog": "01_keep/000000", "a tree": "01_keep/000001"}
    for prompt, seed, guidance in (("a cat", 5, 1.0), ("a dog", 6, 3.0), ("a tree", 5, 4.0)):
        sampler = Sampler(steps, seed, guidance=guidance if steps > 1 else None)
        expected = ((sampler.sample(pipeline, [prompt])[0] + 1) * 127.5).round()
        with Image.open(tmp_path / "samples" / f"{where[prompt]}.png") as image:
            pixels = torch.tensor(list(image.convert("RGB").getdata())).reshape(16, 16, 3)
        # One image alone and three together differ by rounding.
        assert (pixels.permute(2, 0, 1) - expected).abs().max() <= 1


def test_images_that_are_given(evaluate, place, tmp_path):
    """A folder that was drawn, and one from elsewhere, in the order of numbers."""
    assert evaluate(*judge(place), "--steps", 1).code == 0
    drawn = json.loads((tmp_path / "found.json").read_text())["groups"]
    other = tmp_path / "other"
    other.mkdir()
    rows = ("00_forget/000000", "01_keep/000000", "00_forget/000001", "01_keep/000001")
    for number, name in zip((8, 9, 10, 11), rows, strict=True):
        shutil.copy(tmp_path / "samples" / f"{name}.png", other / f"{number}.png")
    for folder in (tmp_path / "samples", other):
        done = evaluate(*judge(place), "--force", images=["--images", folder])
        assert done.code == 0, done.err
        assert json.loads((tmp_path / "found.json").read_text())["groups"] == drawn
    (other / "8.png").unlink()
    done = evaluate(*judge(place), "--force", images=["--images", other])
    assert done.code == 2 and "3 images" in done.err


def documented(file: str, **names) -> None:
    """Run the lines of the documentation that write a file of prompts."""
    blocks = (DOCS / "erase-a-concept.md").read_text().split("```")
    (block,) = (block for block in blocks if f'open("{file}", "w"' in block)
    exec(block.removeprefix("text"), {"csv": csv, "itertools": itertools, **names})


def test_images_get_the_names_that_unlearncanvas_expects(evaluate, place, tmp_path, monkeypatch):
    """THEME_OBJECT_seedN.jpg, in one folder."""
    monkeypatch.chdir(place)
    themes, kinds = ["Van_Gogh", "Rust"], ["Cats", "Dogs"]
    documented("canvas.csv", theme_available=themes, class_available=kinds)
    done = evaluate("--steps", 1, prompts="canvas.csv")
    assert done.code == 0, done.err
    folder = tmp_path / "samples" / "00_prompts"
    rows = itertools.product(themes, kinds, (188, 288, 588, 688, 888))
    expected = {f"{theme}_{kind}_seed{seed}.jpg" for theme, kind, seed in rows}
    assert {file.name for file in folder.iterdir()} == expected
    with Image.open(folder / "Rust_Cats_seed288.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (16, 16))
    # The same names are found again, in whatever order they lie there.
    for given in (tmp_path / "samples", folder):
        done = evaluate(*judge(place), "--force", prompts="canvas.csv", images=["--images", given])
        assert done.code == 0, done.err
    assert evaluate("--per-prompt", 2, "--force", prompts="canvas.csv").code == 2
    (folder / "Rust_Cats_seed288.jpg").unlink()
    images = ["--images", folder]
    done = evaluate(*judge(place), "--force", prompts="canvas.csv", images=images)
    assert done.code == 2 and "Rust_Cats_seed288.jpg" in done.err


def test_images_get_the_names_that_hub_expects(evaluate, place, tmp_path, monkeypatch):
    """N.jpg: image j of prompt i is i x each + j; lines are prompts, quotes and commas too."""
    monkeypatch.chdir(place)
    file = place / "prompts" / "selective_alignment" / "Cat.csv"
    file.parent.mkdir(parents=True)
    file.write_text('a cat, asleep\n"a dog"\n')
    documented("hub.csv", task="selective_alignment", target="Cat", each=3)
    rows = read_prompt_file(place / "hub.csv").rows
    assert [row.prompt for row in rows[2:4]] == ["a cat, asleep", '"a dog"']
    done = evaluate("--steps", 1, prompts="hub.csv")
    assert done.code == 0, done.err
    images = (tmp_path / "samples" / "00_prompts").iterdir()
    assert {image.name for image in images} == {f"{n}.jpg" for n in range(6)}


FACES = """
def of_labels(images):
    return [[{"cat": 0.75, "dog": 0.25}] for _ in images]
"""


def test_a_recogniser_of_ones_own(evaluate, tmp_path, monkeypatch):
    (tmp_path / "faces_of_test.py").write_text(FACES)
    monkeypatch.syspath_prepend(tmp_path)
    done = evaluate("--faces", "trusted:faces_of_test:of_labels", "--steps", 1)
    assert done.code == 0, done.err
    groups = json.loads((tmp_path / "found.json").read_text())["groups"]
    forget, keep = (groups[name]["faces"] for name in ("forget", "keep"))
    assert (forget["recognised"], forget["probability"]) == (2, 0.75)
    assert (keep["recognised"], keep["probability"]) == (0, 0.125)
