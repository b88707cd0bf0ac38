"""Samples as a folder: what is written, what a second start draws, refusals."""

import errno
import fcntl
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pecker_fast.datasets.image_files import load_image_files
from pecker_fast.errors import PeckerError
from pecker_fast.evaluate.sample_plan import class_plan, numbered_files
from pecker_fast.evaluate.samples import write_samples
from pecker_fast.evaluate.sampling import Sampler

LABELS = torch.tensor([0, 2, 0, 2, 0])
SAMPLER = Sampler(steps=2, seed=3, batch_size=2)
FILES = [
    "00_circle/000000.png",
    "02_star/000000.png",
    "00_circle/000001.png",
    "02_star/000001.png",
    "00_circle/000002.png",
]


def plan_of(model, sampler=SAMPLER, labels=LABELS, path="where/it/was"):
    return class_plan(model, path, sampler, labels)


@pytest.fixture
def plan(tiny_model):
    return plan_of(tiny_model)


@pytest.fixture
def counted(plan):
    """The plan, and the list of the batches that are drawn of it."""
    drawn = []

    def batches(only, progress):
        for part, images in plan.batches(only, progress):
            drawn.append(part.start // plan.batch_size)
            yield part, images

    return replace(plan, batches=batches), drawn


@pytest.fixture
def pixels(tiny_model):
    """What an independent reading of the images in [-1, 1] gives, (5, 8, 8) uint8."""
    images = SAMPLER.sample(tiny_model, LABELS)[:, 0].double()
    return np.floor((images.numpy() + 1) / 2 * 255 + 0.5).astype(np.uint8)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def images_of(folder):
    return {name: content for name, content in tree(folder).items() if name.endswith(".png")}


def test_a_folder_of_png_files_that_says_what_drew_them(plan, pixels, tiny_model, tmp_path):
    folder = tmp_path / "samples"
    assert write_samples(folder, plan) == 5
    assert sorted(tree(folder)) == sorted([*FILES, "samples.json"])
    for index, file in enumerate(FILES):
        with Image.open(folder / file) as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), pixels[index])

    content = json.loads((folder / "samples.json").read_text())
    assert content["complete"] is True and content["count"] == 5
    assert content["folders"]["02_star"] == {"index": 2, "name": "star", "count": 2}
    assert content["sampler"] == SAMPLER.settings(tiny_model, LABELS)
    assert content["model"]["path"] == "where/it/was" and len(content["model"]["weights"]) == 64
    (start,) = content["starts"]
    assert (start["images"], start["processes"]) == (5, 1)
    assert start["seconds"] >= 0 and "torch" in start["versions"]

    read = load_image_files(folder)
    assert read.labels.tolist() == [0, 0, 0, 2, 2]
    assert read.class_names == tiny_model.class_names
    assert read.provenance == content
    assert np.array_equal(read.images[:, 0].numpy(), pixels[[0, 2, 4, 1, 3]])


def test_only_what_is_missing_is_drawn_and_the_end_is_the_same(counted, tmp_path):
    plan, drawn = counted
    write_samples(tmp_path / "whole", plan)
    assert drawn == [0, 1, 2]
    folder = tmp_path / "stopped"
    write_samples(folder, plan)
    drawn.clear()
    assert write_samples(folder, plan) == 0 and drawn == []

    (folder / FILES[1]).unlink()
    (folder / FILES[4]).write_bytes(b"")  # a machine that lost power
    kept = (folder / FILES[0]).stat().st_mtime_ns
    (folder / "00_circle" / ".000002.png").write_bytes(b"half")
    (folder / "00_circle" / ".DS_Store").write_bytes(b"of somebody else")
    assert write_samples(folder, plan) == 2
    assert drawn == [0, 2]
    assert images_of(folder) == images_of(tmp_path / "whole")
    assert (folder / FILES[0]).stat().st_mtime_ns == kept
    hidden = sorted(p.name for p in folder.rglob(".*"))
    assert hidden == [".DS_Store"]
    content = json.loads((folder / "samples.json").read_text())
    assert [start["images"] for start in content["starts"]] == [5, 2]
    assert content["complete"] is True


@pytest.mark.parametrize("stopped_after", [0, 1])
def test_a_start_that_is_stopped_leaves_a_folder_that_goes_on(
    plan, counted, tmp_path, stopped_after
):
    def batches(only, progress):
        for number, batch in enumerate(plan.batches(only, progress)):
            if number == stopped_after:
                raise KeyboardInterrupt
            yield batch

    folder = tmp_path / "samples"
    with pytest.raises(KeyboardInterrupt):
        write_samples(folder, replace(plan, batches=batches))
    content = json.loads((folder / "samples.json").read_text())
    assert content["complete"] is False and content["starts"][0]["images"] is None
    assert len(images_of(folder)) == 2 * stopped_after
    again, drawn = counted
    assert write_samples(folder, again) == 5 - 2 * stopped_after
    assert drawn == [0, 1, 2][stopped_after:]
    write_samples(tmp_path / "whole", plan)
    assert images_of(folder) == images_of(tmp_path / "whole")


def test_the_batch_size_and_the_place_of_the_model_may_change(plan, tiny_model, tmp_path):
    folder = tmp_path / "samples"
    write_samples(folder, plan)
    for file in FILES[2:]:
        (folder / file).unlink()
    other = plan_of(tiny_model, replace(SAMPLER, batch_size=3), path="elsewhere")
    assert write_samples(folder, other) == 3
    sizes = [s["batch_size"] for s in json.loads((folder / "samples.json").read_text())["starts"]]
    assert sizes == [2, 3]


def test_samples_of_another_run_are_refused_by_what_differs(plan, tiny_model, tmp_path):
    folder = tmp_path / "samples"
    write_samples(folder, plan)
    before = tree(tmp_path)
    changed = replace(
        tiny_model, network=type(tiny_model.network).from_config(tiny_model.network.config)
    )
    others = {
        "sampler.seed": plan_of(tiny_model, replace(SAMPLER, seed=4)),
        "count": plan_of(tiny_model, labels=LABELS[:3]),
        "folders.01_square.index": plan_of(tiny_model, labels=LABELS * 0 + 1),
        "model.weights": plan_of(changed),
    }
    for name, other in others.items():
        with pytest.raises(PeckerError, match=f"{folder}: .*{name}"):
            write_samples(folder, other)
    assert tree(tmp_path) == before


def test_force_replaces_samples_and_nothing_else(plan, tiny_model, tmp_path):
    folder = tmp_path / "samples"
    write_samples(folder, plan)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("precious")
    other = plan_of(tiny_model, replace(SAMPLER, seed=4), torch.tensor([1, 1]))
    assert write_samples(folder, other, force=True) == 2
    assert sorted(tree(folder)) == [
        "01_square/000000.png", "01_square/000001.png", "notes/mine.txt", "samples.json",
    ]  # fmt: skip
    # Names from a file decide what is deleted: none may lead out of the folder.
    content = json.loads((folder / "samples.json").read_text())
    content["folders"] = {"../outside": {}, "..": {}, ".": {}, "": {}, "notes": {}}
    (folder / "samples.json").write_text(json.dumps(content))
    (tmp_path / "outside").mkdir()
    assert write_samples(folder, other, force=True) == 2
    assert (tmp_path / "outside").is_dir()
    assert (folder / "notes" / "mine.txt").exists()


def test_two_commands_at_once(plan, tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(PeckerError, match="another process writes samples there"):
            write_samples(folder, plan)
    finally:
        os.close(held)
    assert write_samples(folder, plan) == 5


def test_a_disk_that_fills_up(plan, tmp_path, monkeypatch):
    folder, written = tmp_path / "samples", []
    save = Image.Image.save

    def until_full(self, file, **options):
        if len(written) == 3:
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        written.append(file)
        save(self, file, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", until_full)
        with pytest.raises(OSError, match="No space left"):
            write_samples(folder, plan)
    assert len(images_of(folder)) == 3 and not list(folder.rglob(".*"))
    assert write_samples(folder, plan) == 2
    write_samples(tmp_path / "whole", plan)
    assert images_of(folder) == images_of(tmp_path / "whole")


def test_names_of_folders():
    names = ["T-shirt/top", "../..", "café", "CON: <x>", "a" * 200]
    folders, files = numbered_files(torch.tensor([0, 1, 2, 3, 4, 0]), names)
    assert list(folders) == ["00_T-shirt-top", "01", "02_café", "03_CON-x", f"04_{'a' * 60}"]
    assert files[5] == "00_T-shirt-top/000001.png"
    assert [part["name"] for part in folders.values()] == names
    folders, _ = numbered_files(torch.tensor([7, 1000]), [str(k) for k in range(1001)])
    assert list(folders) == ["0007_7", "1000_1000"]


def test_networks_whose_images_are_no_pngs(tiny_model):
    model = replace(tiny_model, patch_size=1)
    object.__setattr__(model.network.config, "in_channels", 2)
    with pytest.raises(PeckerError, match="need 1 or 3 channels, got 2"):
        plan_of(model)
