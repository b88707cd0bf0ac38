"""The scripts that made the shipped models: a few steps on toys end in folders that load."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline
from pecker_fast_demo import emoji_judges_folder
from pecker_fast_demo.emoji_captions import OBJECTS, STYLES
from PIL import Image
from safetensors.torch import load_file

from pecker_fast.datasets import fashion_mnist
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.frechet import ClassStatistics
from pecker_fast.models import ModelFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "make"))


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """In place of Fashion-MNIST: a bar for each class, at a place of its own."""
    images, labels = torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(60) % 10
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2 + 2 * label : 6 + 2 * label] = 190
    monkeypatch.setattr(fashion_mnist, "load_pixels", lambda folder, split: (images, labels))


def run(script, out, *arguments):
    words = ["--out", str(out), "--batch-size", "4", "--threads", "1", *arguments]
    result = CliRunner().invoke(script, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert not out.with_name(out.name + ".partial").exists()


@pytest.mark.slow
def test_make_teacher(tmp_path):
    import make_teacher

    small = ("network.channels=16", "iterations=2", "batch_size=4", "warmup=0")
    out = trained(make_teacher, tmp_path, small, "--epochs", "5")
    folder = ModelFolder.load(out)
    assert folder.image_shape == (1, 28, 28) and folder.figures["training"]["iterations"] == 2
    assert load_classifier(out / "classifier", folder.class_names).num_classes == 10
    assert ClassStatistics.load(out / "statistics.safetensors").num_classes == 10


@pytest.mark.slow
def test_make_dit(tmp_path):
    import make_dit

    small = ("network.channels=16", "network.blocks_per_level=1")
    small += ("iterations=2", "batch_size=4", "warmup=0")
    out = trained(make_dit, tmp_path, small)
    folder = ModelFolder.load(out)
    assert (folder.image_shape, folder.prediction_type) == ((1, 28, 28), "flow_prediction")
    assert folder.null_label == 10 and folder.figures["training"]["iterations"] == 2
    stored = load_file(out / "transformer/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


def trained(script, tmp_path, settings, *words):
    """The folder that a script makes with these settings, with figures of 2 images a class."""
    out = tmp_path / "out"
    words = ("--run", str(tmp_path / "run"), "--out", str(out), "--per-class", "2", *words)
    changes = [word for setting in settings for word in ("--set", setting)]
    result = CliRunner().invoke(
        script.make, [*words, *changes, "--threads", "1"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    folder = ModelFolder.load(out)
    assert folder.class_names == fashion_mnist.CLASS_NAMES
    assert folder.figures["teacher"]["per_class"] == 2
    return out


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dit", "emoji"])
def test_make_first_stage(what, tmp_path, monkeypatch):
    import make_first_stage

    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(f"base: {make_first_stage.RECIPES[what]}\niterations: 1\nbatch_size: 2\n")
    monkeypatch.setitem(make_first_stage.RECIPES, what, str(recipe))
    words = [what, "--run", str(tmp_path / "run"), "--out", str(out), "--threads", "1"]
    result = CliRunner().invoke(make_first_stage.make, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    weights = sorted(out.glob("*/*/diffusion_pytorch_model.safetensors"))
    assert len(weights) == 2
    for file in weights:
        assert {value.dtype for value in load_file(file).values()} == {torch.float16}


@pytest.mark.slow
def test_make_emoji(tmp_path, monkeypatch):
    import make_emoji

    drawn = shades()
    count = len(drawn.images)
    monkeypatch.setattr(make_emoji, "read_drawings", lambda folder: drawn)
    monkeypatch.setattr(make_emoji, "COPIES", 1)
    out = tmp_path / "emoji"
    words = ("--drawings", "x", "--steps", "2", "--autoencoder-steps", "2", "--per-pair", "1")
    run(make_emoji.make, out, *words)
    assert "Noto" in (out / "NOTICE").read_text()
    description = json.loads((out / "pecker_fast.json").read_text())
    assert [figure["object"][1] for figure in description["figures"]] == [count, count]
    pipeline = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    image = pipeline("noto dog", num_inference_steps=2).images[0]
    assert (image.size, image.mode) == ((32, 32), "RGB")


@pytest.mark.slow
def test_make_emoji_judges(tmp_path, monkeypatch):
    import make_emoji_judges

    drawn, judges = shades(), tmp_path / "judges"
    for name, found in (
        ("read_drawings", drawn),
        ("by_other_hands", (drawn.images, drawn.objects)),
        ("the_hands_others", (drawn.images, drawn.styles)),
    ):
        monkeypatch.setattr(make_emoji_judges, name, lambda folder, found=found: found)
    monkeypatch.setattr(make_emoji_judges, "COPIES", {"object": 1, "style": 1})
    words = ("--drawings", "x", "--width", "4")
    with monkeypatch.context() as stopped:  # when both are trained, the second not yet saved
        stopped.setattr(make_emoji_judges, "prompts_to_judge", lambda kind: {"object": ""}[kind])
        with pytest.raises(KeyError):
            run(make_emoji_judges.make, judges, *words)
    partial = tmp_path / "judges.partial"
    assert not judges.exists()
    before = {kind: load_classifier(partial / "judges" / kind) for kind in ("object", "style")}
    run(make_emoji_judges.make, judges, *words)
    for kind, judge in before.items():
        for was, now in zip(
            judge.parameters(), load_classifier(judges / kind).parameters(), strict=True
        ):
            assert torch.equal(was, now)
    assert load_classifier(judges / "style").num_classes == 4
    assert load_classifier(judges / "object").num_classes == 24
    for kind in ("style", "object"):
        shipped = emoji_judges_folder() / f"{kind}.csv"
        assert (judges / shipped.name).read_bytes() == shipped.read_bytes()


def shades():
    """In place of the drawings: a shade for each object and style."""
    from emoji_drawings import Drawings

    count = len(OBJECTS) * len(STYLES)
    images = torch.linspace(-0.9, 0.9, count).view(-1, 1, 1, 1).expand(-1, 3, 64, 64)
    return Drawings(images, torch.arange(count) // len(STYLES), torch.arange(count) % len(STYLES))


def test_drawings_of_other_hands(tmp_path, monkeypatch):
    """Of packages of iconify: sizes and offsets, aliases, and nothing where one has none."""
    import emoji_drawings

    frogs = {"frog": {"body": "<g/>", "left": 3}, "frog-face": {"body": "<b/>", "width": 8}}
    packages = {name: {"icons": {}} for name in emoji_drawings.OTHER_HANDS}
    packages["noto-v1"] = {"icons": frogs, "width": 32, "height": 24}
    packages["fxemoji"] = {"icons": frogs, "aliases": {"frogface": {"parent": "frog-face"}}}
    for name, content in packages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "icons.json").write_text(json.dumps(content))
    drawn = []
    monkeypatch.setattr(
        emoji_drawings, "_drawn", lambda svg: drawn.append(svg) or Image.new("RGBA", (64, 64))
    )
    images, objects = emoji_drawings.by_other_hands(tmp_path)
    assert objects.tolist() == [OBJECTS.index("frog")] * 3
    assert images.shape == (3, 3, 64, 64) and (images == 1).all()  # transparent, on white
    said = [svg[svg.index("viewBox") :] for svg in drawn]
    assert said == [
        'viewBox="3 0 32 24"><g/></svg>',
        'viewBox="3 0 16 16"><g/></svg>',
        'viewBox="0 0 8 16"><b/></svg>',
    ]
