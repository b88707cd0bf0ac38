"""`sample --out`: options, runs, several processes, kills in the middle, disks that are full."""

import json
import time

import pytest
import torch
from distributed.processes import killed_commands, run_commands
from PIL import Image
from tiny_models import tiny_scheduler

from pecker_fast.datasets.image_files import load_image_files
from pecker_fast.evaluate.samples import read_back
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet

SLOW = ("--count", 40, "--steps", 50, "--batch-size", 4, "--seed", 5)


def images_of(folder):
    """All but what a kill has left half-written."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("[!.]*.png")}


def kill_after_some_images(folder, *arguments):
    """SIGKILL to two processes as soon as the first images are in `folder`."""
    with killed_commands(2, *arguments) as processes:
        deadline = time.monotonic() + 90
        while not any(folder.glob("*/0*.png")):
            assert all(process.is_alive() for process in processes)
            assert time.monotonic() < deadline
            time.sleep(0.002)


@pytest.fixture
def whole(run, files, tmp_path, monkeypatch):
    """The images of `SLOW` as one process draws them that nothing stops."""
    torch.set_num_threads(1)
    done = run("sample", files.model, "--out", tmp_path / "whole", *SLOW)
    assert done.code == 0, done.err
    return images_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_that_are_killed_and_started_again_draw_the_images_of_one(
    run, files, whole, tmp_path
):
    out = tmp_path / "samples"
    arguments = ("sample", files.model, "--out", out, *SLOW)
    kill_after_some_images(out, *arguments)
    there = images_of(out)
    assert 0 < len(there) < 40
    assert json.loads((out / "samples.json").read_text())["complete"] is False
    codes, outs, errs = run_commands(2, *arguments)
    assert codes == (0, 0), errs
    assert outs == (f"{out}\n", "") and errs[1] == ""  # one process speaks
    assert f"{len(there)} of 40 images were there" in errs[0]
    assert images_of(out) == whole
    content = json.loads((out / "samples.json").read_text())
    assert [start["processes"] for start in content["starts"]] == [2, 2]
    assert content["starts"][1]["images"] == 40 - len(there)
    done = run(*arguments)
    assert done.code == 0 and "40 of 40 images were there" in done.err


def test_every_option_of_the_sampler_counts(run, tmp_path):
    torch.manual_seed(0)
    unet = DDPMUNet(
        sample_size=8, in_channels=3, num_classes=3, channels=32, channel_mult=(1, 1),
    ).eval()  # fmt: skip

    ModelFolder(unet, tiny_scheduler(), ("circle", "square", "star")).save(tmp_path / "model")
    model = ModelFolder.load(tmp_path / "model")
    cases = {
        "a": (("--sampler", "ddpm", "--steps", 4, "--guidance", 2),
              Sampler(4, 6, method="ddpm", guidance=2, batch_size=2)),
        "b": (("--steps", 4, "--eta", 0.5), Sampler(4, 6, eta=0.5, batch_size=2)),
        "c": (("--sampler", "one-step", "--t-init", 300), Sampler(1, 6, t_init=300, batch_size=2)),
    }  # fmt: skip
    for name, (options, sampler) in cases.items():
        out = tmp_path / name
        done = run(
            "sample", tmp_path / "model", "--out", out, "--class", "star", "--class", 0,
            "--count", 3, "--seed", 6, "--batch-size", 2, *options,
        )  # fmt: skip
        assert done.code == 0, done.err
        files = load_image_files(out)
        assert files.labels.tolist() == [0, 2, 2]
        assert files.provenance["sampler"] == sampler.settings(model, files.labels)
        found = read_back(out, torch.tensor([2, 0, 2]), None)
        expected = (sampler.sample(model, torch.tensor([2, 0, 2])) + 1) * 127.5
        assert (found - expected).abs().max() <= 0.501


def test_images_of_a_run(run, files, tmp_path):
    model = ModelFolder.load(files.model).with_network(
        ModelFolder.load(files.model).network, "generator"
    )
    object.__setattr__(model, "figures", {"forget": "star", "iterations": 7, "t_init": 300})
    model.save(tmp_path / "run" / "model")
    done = run("sample", tmp_path / "run", "--out", tmp_path / "out", "--per-class", 2)
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert content["model"]["path"] == str(tmp_path / "run" / "model")
    assert (content["model"]["forgotten"], content["model"]["iterations"]) == ("star", 7)
    assert (content["sampler"]["steps"], content["sampler"]["t_init"]) == (1, 300)
    assert content["count"] == 6
    done = run("sample", tmp_path / "run", "--png", tmp_path / "grid.png", "--per-class", 2)
    assert done.code == 0 and Image.open(tmp_path / "grid.png").size[0] > 200, done.err


@pytest.fixture
def launch(monkeypatch):
    """The store that torchrun keeps over all attempts of a launch."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return store


def test_force_deletes_no_image_of_its_own_launch(run, files, tmp_path, launch):
    out = tmp_path / "out"
    arguments = ("sample", files.model, "--steps", 1, "--count", 8, "--out", out, "--force")
    (out / "00_circle").mkdir(parents=True)
    (out / "samples.json").write_text(
        '{"complete": true, "folders": {"00_circle": "circle"}, "sampler": {}, "starts": []}'
    )
    (out / "00_circle" / "9.png").touch()  # an earlier run
    assert run(*arguments).code == 0
    first = sorted(out.rglob("*.png"))
    assert len(first) == 8
    first[0].unlink()
    times = [file.stat().st_mtime_ns for file in first[1:]]
    done = run(*arguments)  # as torchrun restarts it
    assert done.code == 0 and "7 of 8 images were there" in done.err, done.err
    assert [file.stat().st_mtime_ns for file in first[1:]] == times and first[0].exists()
