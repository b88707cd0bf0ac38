"""A pipeline as a technique of eval-unlearn, in that package's own runner where it is there."""

import sys
from pathlib import Path
from types import SimpleNamespace

import nudity_files
import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import SIDE, save_tiny_pipeline

from pecker_fast import PeckerError
from pecker_fast.erasure.benchmark import EvalUnlearnMetric, EvalUnlearnTechnique
from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
from pecker_fast.models.pipeline import PipelineFolder

PROMPTS = ["a cat", "a dog"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "pipeline"
    save_tiny_pipeline(folder)
    return folder


def test_images_are_those_of_the_sampler(pipeline):
    technique = EvalUnlearnTechnique(pipeline=str(pipeline), erase_concept="cat", device="cpu")
    images = technique.generate(prompts=PROMPTS, seed=3)
    assert [image.size for image in images] == [(2 * SIDE, 2 * SIDE)] * 2
    ours = PipelineFolder.load(pipeline)
    sampler = PipelineSampler(ours)
    expected = sampler.images(sampler.latents(ours.network, PROMPTS, 3))
    for image, pixels in zip(images, expected, strict=True):
        difference = np.asarray(image) / 255 - pixels.permute(1, 2, 0).numpy()
        assert np.abs(difference).max() <= 0.5 / 255 + 1e-6
    again, other = technique.generate(PROMPTS, seed=3), technique.generate(PROMPTS, seed=4)
    assert [i.tobytes() for i in again] == [i.tobytes() for i in images]
    assert other[0].tobytes() != images[0].tobytes()
    more = technique.generate(PROMPTS, seed=3, num_inference_steps=2, guidance_scale=2.0)
    assert more[0].tobytes() != images[0].tobytes()


def test_our_judges_as_a_metric(tmp_path, monkeypatch):
    """Called as the benchmark's runner does, with types of its fields."""
    types = SimpleNamespace(
        Dataset=lambda prompts, metadata: SimpleNamespace(prompts=prompts, metadata=metadata),
        MetricResult=lambda name, value, details: (name, value, details),
    )
    monkeypatch.setitem(sys.modules, "eval_unlearn", SimpleNamespace(types=types))
    monkeypatch.setitem(sys.modules, "eval_unlearn.types", types)
    prompts, detector = tmp_path / "prompts.csv", tmp_path / "nudity.onnx"
    prompts.write_text("prompt,group\na cat,forget\na dog,keep\n")
    found = nudity_files.anchors((8, 8, 4, 4, nudity_files.BELLY, 0.6))
    nudity_files.write_file(detector, found, names=nudity_files.NAMES)
    metric = EvalUnlearnMetric(str(prompts), device="cpu", nudity_detector=str(detector))
    for _ in range(2):  # a metric may be asked again
        asked = metric.load_dataset()
        assert [part.prompts for part in asked] == [["a cat"], ["a dog"]]
        for part in asked:
            metric.update([Image.new("RGB", (16, 16))], part.prompts, part.metadata)
        name, value, details = metric.compute()
        assert (name, value) == ("pecker_fast", 1.0)
        assert details["groups"]["keep"]["images"] == 1
    metric.load_dataset()
    with pytest.raises(PeckerError, match="0 images"):
        metric.compute()


def test_what_is_no_pipeline(tmp_path):
    with pytest.raises(PeckerError, match="no text-to-image pipeline"):
        EvalUnlearnTechnique(pipeline=str(tmp_path))


def test_the_benchmark_runs_it(pipeline, tmp_path):
    registry = pytest.importorskip("eval_unlearn.registry")
    runners = pytest.importorskip("eval_unlearn.runners.single_benchmark_runner")
    types = pytest.importorskip("eval_unlearn.types")
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is of Python 3.11")
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (name, place), *_ = project["project"]["entry-points"]["eval_unlearn.techniques"].items()
    assert place == f"{EvalUnlearnTechnique.__module__}:{EvalUnlearnTechnique.__name__}"
    registry.register_technique(name)(EvalUnlearnTechnique)
    seen = []

    class Counts:
        def __init__(self, **_):
            pass

        def load_dataset(self):
            return [types.Dataset([prompt], {"source": "two"}) for prompt in PROMPTS]

        def update(self, images, prompts, metadata):
            seen.extend(zip(images, prompts, strict=True))

        def compute(self):
            return types.MetricResult("counts", float(len(seen)))

    registry.register_metric("counts")(Counts)
    runner = runners.SingleBenchmarkRunner(
        technique_name=name, metric_name="counts", output_dir=str(tmp_path),
        technique_config={"pipeline": str(pipeline), "erase_concept": "cat", "device": "cpu"},
    )  # fmt: skip
    runner.run()
    assert [prompt for _, prompt in seen] == PROMPTS
    assert len(list(tmp_path.rglob("*.png"))) == 2
