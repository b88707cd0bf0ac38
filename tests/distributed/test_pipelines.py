"""Images that several processes draw have the bits of one."""

import pytest
import torch
from pipeline_jobs import class_images, sample
from processes import run_processes
from tiny_models import model_of_shapes
from tiny_pipeline import save_tiny_pipeline

from pecker_fast.distributed import Ranks


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    save_tiny_pipeline(folder, length=48)
    return str(folder)


@pytest.mark.parametrize(
    ("size", "count", "batch_size", "shares"),
    [
        (2, 7, 3, [[3], [3, 1]]),
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
