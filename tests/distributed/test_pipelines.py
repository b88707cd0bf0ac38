"""Text-to-image pipelines on several processes: images, previews and an erasure as of one."""

import json

import pytest
import torch
from pipeline_jobs import class_images, preview, sample
from processes import run_commands, run_processes
from safetensors.torch import load_file
from tiny_models import model_of_shapes
from tiny_pipeline import save_tiny_pipeline

from pecker_fast import cli
from pecker_fast.distributed import Ranks
from pecker_fast.evaluate import sampling
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.models.pipeline import PipelineFolder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    save_tiny_pipeline(folder, length=48)
    return str(folder)


@pytest.fixture(autouse=True)
def _batches_as_before(monkeypatch):
    """What the jobs set in this process."""
    monkeypatch.setattr(sampling, "_MAX_BATCH", sampling._MAX_BATCH)


@pytest.mark.parametrize(
    ("size", "count", "batch_size", "shares"),
    [
        (2, 7, 3, [[3], [3, 1]]),
        pytest.param(2, 6, 1, [[1] * 3, [1] * 3], marks=pytest.mark.slow),
        (2, 2, 5, [[], [2]]),  # fewer batches than processes
        pytest.param(3, 7, 2, [[2], [2], [2, 1]], marks=pytest.mark.slow),
    ],
)
def test_latents_and_images_have_the_bits_of_one_process(pipeline, size, count, batch_size, shares):
    alone = sample(Ranks(), pipeline, count, batch_size)
    first, *others = run_processes(sample, size, pipeline, count, batch_size)
    for name in ("one", "many", "images"):
        assert len(first[name]) == count
        assert torch.equal(first[name], alone[name]), name
        assert all(other[name] is None for other in others)
    assert [outcome["drawn"] for outcome in (first, *others)] == shares


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_images_of_a_class_model_have_the_bits_of_one_process(tmp_path, batch_size):
    model_of_shapes().save(tmp_path)
    first, second = run_processes(class_images, 2, str(tmp_path), batch_size)
    assert second is None
    assert torch.equal(first, class_images(None, str(tmp_path), batch_size))


@pytest.mark.slow
def test_previews_and_the_comparison_are_shared(pipeline, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    expected = preview(Ranks(), pipeline, str(alone))
    first, second = run_processes(preview, 2, pipeline, str(together))
    # Four prompts are two batches: each process draws one of every preview.
    assert expected["drawn"] == [2] * 4
    assert first["drawn"] == second["drawn"] == [2] * 2
    assert second["compared"] is None
    for found, image in zip(first["compared"], expected["compared"], strict=True):
        assert found.shape == (16, 3, 16, 16)
        assert torch.equal(found, image)
    strip, same = (load_file(out / "previews.safetensors") for out in (together, alone))
    assert sorted(strip, key=int) == ["-1", "0", "1"]
    assert all(torch.equal(strip[key], same[key]) for key in same)
    assert (together / "progress.png").read_bytes() == (alone / "progress.png").read_bytes()


# SGD-like steps: Adam's first ones divide rounding by itself where a gradient is almost 0. And in
# float32: bfloat16 rounds what differs in the last bit to values that differ in the third digit.
SETTINGS = (
    "batch_size=4", "micro_batch=null", "saliency.batches=1", "saliency.batch_size=4",
    "optimizer.eps=1", "generator.lr=0.05", "pseudo_score.lr=0.05", "precision=fp32",
)  # fmt: skip


def erase(pipeline, out):
    return [str(word) for word in (
        "erase", "--pipeline", pipeline, "--recipe", "object", "--name", "cat",
        "--override", "dog", "--out", out, "--iterations", 2,
        "--density", 0.2, "--teacher-steps", 2, *(w for s in SETTINGS for w in ("--set", s)),
        "--device", "cpu", "--threads", 1,
    )]  # fmt: skip


@pytest.mark.slow
def test_two_processes_erase_as_one(pipeline, tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "run"
    assert cli.main(erase(pipeline, alone)) == 0
    codes, said, errors = run_commands(2, *erase(pipeline, out))
    assert codes == (0, 0), errors
    assert "".join(said).count(f"report           {out / 'report.html'}") == 1  # one speaks

    original = PipelineFolder.load(pipeline).network
    masks = [SaliencyMask.load(run / "mask.safetensors", original) for run in (alone, out)]
    assert masks[0].digest == masks[1].digest
    one, two = (PipelineFolder.load(run / "pipeline").network for run in (alone, out))
    moved = 0
    for name, salient in masks[0].to_dense().items():
        before, after, expected = (n.get_parameter(name) for n in (original, two, one))
        assert torch.equal(after[~salient], before[~salient])
        # Two halves of a batch add up in another order.
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5, msg=name)
        moved += int((after != before).sum())
    assert moved > 0.9 * masks[0].nnz

    # Every file once, and nothing of a second writer.
    names = sorted(path.relative_to(out) for path in out.rglob("*"))
    assert names == sorted(path.relative_to(alone) for path in alone.rglob("*"))
    report = json.loads((out / "report.json").read_text())
    assert report["frozen_changed"] == 0 < report["salient_changed"]
    assert "While it ran" in (out / "report.html").read_text()

    shown, expected = (load_file(run / "previews.safetensors") for run in (out, alone))
    assert sorted(shown, key=int) == ["-1", "0", "1", "2"]
    for key in ("-1", "0"):  # before training: the same bits
        assert torch.equal(shown[key], expected[key])
    for key in ("1", "2"):  # 8 bits a channel: what lies at a border may round to either side
        assert (shown[key].int() - expected[key].int()).abs().max() <= 1
