"""The peak of a run computed from shapes is that of the same run on real tensors."""

import copy
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_scheduler, tiny_unet
from torch import nn

from pecker_fast.datasets.loading import ImageSet
from pecker_fast.distill import load_config
from pecker_fast.erasure.classes import ClassTask
from pecker_fast.erasure.dry_run import _modelled
from pecker_fast.erasure.run import Site
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.methods.config import load_baseline_config
from pecker_fast.methods.dry_run import try_teacher
from pecker_fast.methods.teacher import TeacherTrainer
from pecker_fast.methods.training_config import load_teacher_config
from pecker_fast.models import ModelFolder
from pecker_fast.optim.adamw import MaskedAdamW
from pecker_fast.runs.live_memory import WEIGHTS, LiveMemory
from pecker_fast.runs.memory_model import ShapeMask, outside, without_values

CPU, SLOW = torch.device("cpu"), pytest.mark.slow
SMALL = {
    "forget": 2, "override": 0, "batch_size": 2, "saliency.batch_size": 2, "saliency.batches": 1,
    "generator.lambda_forget": 1.0, "optimizer.backend": "reference", "accelerate": False,
}  # fmt: skip
BASELINE = {
    "method": "redirect", "forget": 2, "override": 0, "batch_size": 2, "steps": 3,
    "saliency.batch_size": 2, "saliency.batches": 1, "mask.density": 0.2, "accelerate": False,
    "optimizer.backend": "reference", "label_dropout": 0.0,
}  # fmt: skip


def task(settings):
    torch.manual_seed(0)
    model = ModelFolder(tiny_unet(), tiny_scheduler(), ("circle", "square", "star"))
    site = Site(out=Path("nowhere"), device=CPU)
    load = load_baseline_config if "method" in settings else load_config
    return ClassTask(site, model, load(None, settings))


def real_peak(tried):
    """The same count of the same run with values."""
    with LiveMemory(CPU) as memory:
        memory.label(tried.original.parameters(), "given")
        trainer = tried.tried({}, lambda network: network).start(None)
        memory.moment = "an iteration"
        trainer.iterate()
    return memory


@pytest.mark.parametrize(
    ("settings", "moment"),
    [
        ({**SMALL, "mask.density": 0.2, "mask.apply": "both"}, "an iteration"),
        *(
            pytest.param({**SMALL, "mask.density": 0.2, **more}, moment, marks=SLOW)
            for more, moment in (
                ({"precision": "bf16", "recompute": True}, "an iteration"),
                ({"saliency.batch_size": 64}, "the start"),
            )
        ),
        pytest.param({**SMALL, "mask.kind": "full"}, "an iteration", marks=SLOW),
        pytest.param(BASELINE, "an iteration", marks=SLOW),
    ],
)  # fmt: skip
def test_the_peak_is_that_of_the_run(settings, moment):
    """5 %: kernels of the reference make temporaries, of which the backends in use have none."""
    tried = task(settings)
    peak = _modelled(tried, {})
    assert peak.size == sum(peak.parts.values()) and peak.moment.startswith(moment)
    memory = real_peak(tried)
    assert memory.peak_moment == ("an iteration" if moment == "an iteration" else "")
    assert peak.size == pytest.approx(memory.peak_bytes, rel=0.05)
    if moment == "an iteration":
        weights = sum(p.nbytes for p in tried.original.parameters())
        assert peak.parts[WEIGHTS] >= weights


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("small_teacher", {"accelerate": False}),
        ("small_teacher", {"precision": "autocast"}),
        ("fashion_dit", {}),
    ],
)
def test_the_peak_of_a_teacher_is_that_of_its_training(recipe, more, tmp_path):
    """0.1 %: a real step of the optimizer makes some KiB of its own."""
    pixels = torch.randint(0, 256, (2000, 1, 28, 28), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(2000) % 3, ("a", "b", "c"), "noise")
    config = load_teacher_config(recipe, {**more, "without": 0})
    peak = try_teacher(images, config, CPU, tmp_path / "run").peak
    with LiveMemory(CPU) as memory:
        TeacherTrainer(images, config, CPU).iterate()
    assert peak.size == sum(peak.parts.values()) == pytest.approx(memory.peak_bytes, rel=1e-3)
    weights = peak.parts[WEIGHTS]
    assert peak.parts["optimizer state"] == pytest.approx(2 * weights, rel=1e-3)
    assert peak.parts["weight average"] == weights
    assert peak.parts["images"] == 28 * 28 * int((images.labels != 0).sum())


@SLOW
def test_the_model_leaves_all_as_it_was():
    tried = task({**SMALL, "mask.density": 0.2})
    before = copy.deepcopy(tried.original.state_dict())
    functions = nn.Module.to, MaskedAdamW.step, vars(SaliencyMask)["from_scores"]
    _modelled(tried, {})
    assert functions == (nn.Module.to, MaskedAdamW.step, vars(SaliencyMask)["from_scores"])
    after = tried.original.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    first, second = (tried.tried({}, copy.deepcopy).start(None) for _ in range(2))
    losses = torch.stack(list(first.iterate()))
    assert torch.equal(losses, torch.stack(list(second.iterate())))


def test_numbers_that_are_not_there():
    with without_values():
        x = torch.randn(10**9, 1000)  # 4 TB
        assert bool(x.isfinite().all()) and x.sum().item() == 1
        assert x.any().tolist() == 1 and torch.equal(x, x)
        mask = ShapeMask.of_share({"weight": x}, 1e-9)
        assert (mask.nnz, mask.density) == (1000, 1e-9)
        assert outside(lambda: float(torch.ones(3).sum()))() == 3.0
