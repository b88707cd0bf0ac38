"""DiT: class folders as DiTPipeline saves them, noise and flows, drawn, erased, given back."""

import copy
import json

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from tiny_models import tiny_dit, tiny_scheduler
from tiny_pipeline import CHANNELS, SIDE, tiny_vae
from torch.utils.flop_counter import FlopCounterMode

from pecker_fast import (
    ModelFolder,
    OneStepPipeline,
    PeckerError,
    apply_patch,
    cli,
    erase,
    remove_patch,
    save_patch,
)
from pecker_fast.distill.networks import model_predictor
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.evaluate.classifier import SmallClassifier
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models import latents
from pecker_fast.models.architectures.dit import DiT
from pecker_fast.runs.digest import network_digest

NAMES = ("circle", "square", "star")
RECIPE = {
    "iterations": 2,
    "batch_size": 2,
    "generator.lr": 1e-3,
    "generator.lambda_forget": 1.0,
    "pseudo_score.lr": 1e-3,
    "mask.density": 0.3,
    "saliency.batches": 1,
    "saliency.batch_size": 2,
}


def latent_pipeline(folder):
    """Variance-preserving, with an autoencoder and a predicted variance; 1000 means no class."""
    torch.manual_seed(0)
    network = tiny_dit(1000, (CHANNELS, SIDE, SIDE), variance=True)
    scheduler = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
    pipeline = DiTPipeline(network, tiny_vae(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def flow_model(shift=1.0):
    torch.manual_seed(0)
    return ModelFolder(tiny_dit(), FlowMatchEulerDiscreteScheduler(shift=shift), NAMES)


def starting_noise(model, count, seed):
    stream = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(model.network_shape, generator=stream) for _ in range(count)])


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_latent_images_are_drawn_as_dit_pipeline_draws_them(guidance, tmp_path, monkeypatch):
    theirs = latent_pipeline(tmp_path / "model")
    model = ModelFolder.load(tmp_path / "model")
    assert (model.num_classes, model.null_label) == (1000, 1000)
    assert model.image_shape == (3, 2 * SIDE, 2 * SIDE)
    labels = torch.tensor([3, 999])
    found = Sampler(4, seed=5, guidance=guidance).sample(model, labels)
    noise = starting_noise(model, 2, 5)
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: noise)
    drawn = theirs(
        labels.tolist(), guidance_scale=1 + guidance, num_inference_steps=4, output_type="np"
    )
    expected = torch.from_numpy(drawn.images).permute(0, 3, 1, 2)
    torch.testing.assert_close(found / 2 + 0.5, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_drawn_as_diffusers_steps_along_it(shift, tmp_path):
    flow_model(shift).save(tmp_path / "model")
    model = ModelFolder.load(tmp_path / "model")
    labels = torch.tensor([0, 2])
    found = Sampler(5, seed=5).sample(model, labels)
    theirs = DiTPipeline.from_pretrained(tmp_path / "model", vae=None)
    x = starting_noise(model, 2, 5)
    theirs.scheduler.set_timesteps(5)
    for t in theirs.scheduler.timesteps:
        with torch.no_grad():
            velocity = theirs.transformer(x, t.expand(2), labels).sample
        x = theirs.scheduler.step(velocity, t, x).prev_sample
    torch.testing.assert_close(found, x.clamp(-1, 1), rtol=1e-5, atol=1e-5)


def test_a_predicted_variance_is_left_alone():
    torch.manual_seed(0)
    model = ModelFolder(tiny_dit(variance=True), tiny_scheduler(), NAMES)
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 3])
    schedule = NoiseSchedule.whole(model.scheduler)
    found = model_predictor(model, schedule)(model.network, x, t, labels)
    assert torch.equal(found, model.network(x, t, labels).sample[:, :1])


def test_no_label_is_dropped_in_train_mode():
    network = flow_model().network.train()
    x, t, labels = torch.randn(40, 1, 8, 8), torch.full((40,), 500.0), torch.zeros(40).long()
    x = x[:1].expand_as(x)
    drawn = network(x, t, labels).sample
    torch.testing.assert_close(drawn, drawn[:1].expand_as(drawn), rtol=0, atol=1e-6)


def test_latents_there_and_back():
    """With an autoencoder that is the identity but for its scale."""

    class Identity(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))
            self.config = AutoencoderKL(scaling_factor=0.5, shift_factor=0.25).config

        def encode(self, x):
            mean = type("Latent", (), {"mean": x})
            return type("Encoded", (), {"latent_dist": mean})

        def decode(self, x):
            return type("Decoded", (), {"sample": x})

    images = torch.randn(3, 1, 4, 4)
    found = latents.encode(Identity(), images)
    torch.testing.assert_close(found, (images - 0.25) * 0.5)
    torch.testing.assert_close(latents.decode(Identity(), found), images)


@pytest.fixture(scope="module", params=["flow", "latent"])
def erased(request, tmp_path_factory):
    """(folder of the original, directory of the run, Erased)."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "flow":
        flow_model().save(root / "model")
    else:
        latent_pipeline(root / "model")
    done = erase(root / "model", 0, 2, out=root / "run", settings=RECIPE, device="cpu")
    return root / "model", root / "run", done


def test_erased_and_made_undone(erased, tmp_path):
    folder, run, done = erased
    assert done.frozen.frozen_changed == 0 and done.frozen.salient_changed > 0
    before, after = ModelFolder.load(folder), ModelFolder.load(run / "model")
    assert after.kind == "generator" and after.prediction_type == before.prediction_type
    assert network_digest(after.network) != network_digest(before.network)
    again, patch = copy.deepcopy(before.network), tmp_path / "patch.safetensors"
    save_patch(patch, before.network, after.network, done.mask)
    apply_patch(again, patch)
    assert network_digest(again) == network_digest(after.network)
    remove_patch(again, patch)
    assert network_digest(again) == network_digest(before.network)


def test_a_generator_draws_in_diffusers_what_we_draw(erased):
    _, run, _ = erased
    model = ModelFolder.load(run / "model")
    labels = torch.tensor([0, 2, 1])
    found = Sampler(1, seed=5).sample(model, labels)
    pipeline = OneStepPipeline.from_pretrained(run / "model")
    drawn = pipeline(labels, noise=starting_noise(model, 3, 5), output_type="pt").images
    torch.testing.assert_close(found / 2 + 0.5, drawn, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_commands_on_its_folder(tmp_path):
    flow_model().save(tmp_path / "model")
    SmallClassifier(3, width=4).save(tmp_path / "judge")
    model, judge = str(tmp_path / "model"), ["--classifier", str(tmp_path / "judge")]
    settings = [f"--set={name}={value}" for name, value in RECIPE.items()]
    start, run = str(tmp_path / "start"), str(tmp_path / "run")
    first = [f"--set=generator.lambda_{term}" for term in ("remain=1", "forget=0")]
    for line in (
        ["distill", model, "--out", start, *settings, *first],
        ["erase", model, "--forget", "star", "--override", "nearest", "--from", start, "--out", run,
         *settings, *judge, "--per-class", "2", "--teacher-steps", "2"],
        ["evaluate", run, *judge, "--per-class", "2"],
        ["evaluate", model, *judge, "--per-class", "2", "--steps", "3", "--forget", "star"],
        ["attack", run, *judge, "--images", "10"],
        ["sample", model, "--steps", "3", "--per-class", "1", "--out", str(tmp_path / "drawn")],
    ):  # fmt: skip
        assert cli.main(line) == 0, line
    assert json.loads((tmp_path / "run/report.json").read_text())["frozen_changed"] == 0
    assert json.loads((tmp_path / "run/attack.json").read_text())["forget"] == "star"


def test_a_flow_takes_no_random_steps():
    for sampler in (Sampler(4, eta=0.5), Sampler(4, method="ddpm")):
        with pytest.raises(PeckerError, match="rectified flow"):
            sampler.check(flow_model(), torch.tensor([0]))


@pytest.mark.parametrize(
    ("file", "entry", "value", "named"),
    [
        ("transformer/config.json", "sample_size", 9, "describes no DiT"),
        ("transformer/config.json", "num_embeds_ada_norm", 5, "does not fit"),
        ("pecker_fast.json", "null_label", 2, "null_label"),
        ("pecker_fast.json", "class_names", ["a", "b", "c", "d"], "names 4 classes"),
        ("model_index.json", "vae", ["diffusers", "AutoencoderKL"], "vae"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(file, entry, value, named, tmp_path):
    flow_model().save(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**content, entry: value}))
    with pytest.raises(PeckerError, match=named):
        ModelFolder.load(tmp_path)


def test_full_size_on_meta_tensors():
    """DiT-XL/2 of 256 pixels: 118.64 billion multiply-adds an image (Peebles & Xie, table 4)."""
    with torch.device("meta"):
        network = DiTTransformer2DModel(out_channels=8)
        x, zero = torch.zeros(1, 4, 32, 32), torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            found = DiT().call(network, x, zero, zero)
    assert found.shape == x.shape
    assert counter.get_total_flops() == pytest.approx(2 * 118.64e9, rel=0.01)
    # 675 million as published; of time and class each block of diffusers has embeddings of its own.
    width = 1152
    block = 19 * width**2 + (17 + 256 + 1001) * width
    ends = 17 * width + 2 * width**2 + 2 * width + 32 * (width + 1)
    assert sum(param.numel() for param in network.parameters()) == 28 * block + ends
