"""Every family of pipelines: drawn as diffusers draws it, erased, given back, made undone."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
)
from tiny_architectures import FAMILIES
from tiny_pipeline import SIDE

from pecker_fast import apply_patch, erase
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.evaluate.sampling import Sampler
from pecker_fast.models.architectures import ARCHITECTURES
from pecker_fast.models.architectures.pixart import PixArt
from pecker_fast.models.pipeline import PipelineFolder, load_unet
from pecker_fast.runs.digest import network_digest

PROMPTS = ["a bee", "a fly"]
RECIPE = {
    "iterations": 2,
    "batch_size": 2,
    "precision": "fp32",
    "first_stage": "none",
    "generator.lr": 1e-3,
    "pseudo_score.lr": 1e-3,
    "mask.density": 0.3,
    "saliency.batches": 1,
    "saliency.batch_size": 2,
    "text.remain": ["a dog", "a cow"],
    "text.fill": {},
    "text.concepts": [{"prompts": ["a {concept}"]}],
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(folder, the pipeline of diffusers that wrote it)."""
    folder = tmp_path_factory.mktemp("family") / "pipeline"
    return folder, FAMILIES[request.param](folder)


def test_each_family_has_a_tiny_pipeline():
    assert len(ARCHITECTURES) == len(FAMILIES)


def assert_drawn_alike(folder, theirs):
    """Latents and images of four guided steps."""
    ours = PipelineFolder.load(folder)
    ours.network.eval()
    found = Sampler(4, 3, batch_size=2, guidance=3.0).latents(ours, PROMPTS)
    stream = torch.Generator().manual_seed(3)
    noise = torch.stack([torch.randn(ours.network_shape, generator=stream) for _ in PROMPTS])
    how = {"latents": noise, "num_inference_steps": 4, "guidance_scale": 3.0}
    if isinstance(theirs, FluxPipeline):  # its guidance is an input of the network
        how |= {"latents": F.pixel_unshuffle(noise, 2).flatten(2).mT, "guidance_scale": 3.5}
        how |= {"true_cfg_scale": 3.0, "negative_prompt": ["", ""]}
        how |= {"height": 2 * SIDE, "width": 2 * SIDE}
    if isinstance(theirs, PixArtAlphaPipeline):
        how |= {"use_resolution_binning": False, "clean_caption": False}
    if isinstance(theirs, SanaPipeline):
        # Its solver is of second order and rounds time steps; Euler's steps are those here.
        theirs.scheduler = FlowMatchEulerDiscreteScheduler(shift=theirs.scheduler.config.flow_shift)
        how["use_resolution_binning"] = False
    expected = theirs(PROMPTS, output_type="latent", **how).images
    if isinstance(theirs, FluxPipeline):
        expected = F.pixel_shuffle(expected.mT.unflatten(2, (SIDE // 2, SIDE // 2)), 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    images = torch.from_numpy(theirs(PROMPTS, output_type="np", **how).images).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours.images(found) / 2 + 0.5, images, rtol=1e-4, atol=1e-4)


def test_drawn_as_diffusers_draws(family):
    assert_drawn_alike(*family)


def test_stable_diffusion_3_without_t5(tmp_path):
    assert_drawn_alike(tmp_path, FAMILIES["Stable Diffusion 3"](tmp_path, with_t5=False))


def test_velocity_without_signal_at_the_end(tmp_path):
    """As Stable Diffusion 2.1 is often fine-tuned; the first step is from pure noise."""
    theirs = FAMILIES["Stable Diffusion"](
        tmp_path, "v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    assert theirs.scheduler.timesteps[0] == 999
    assert_drawn_alike(tmp_path, theirs)


def erased_in(folder, out, previews=True, **settings):
    return erase(
        folder, "bee", "fly", out=out, config="object", teacher_steps=1, device="cpu",
        previews=previews, settings={**RECIPE, **settings},
    )  # fmt: skip


@pytest.mark.slow
def test_erased_and_made_undone(family, tmp_path):
    folder, _ = family
    before = PipelineFolder.load(folder)
    out = tmp_path / "run"
    assert erased_in(folder, out).frozen.frozen_changed == 0
    made = DiffusionPipeline.from_pretrained(out / "pipeline")
    network = getattr(made, before.architecture.denoiser)
    assert network_digest(network) != network_digest(before.network)
    again, _ = load_unet(folder)
    apply_patch(again, out / "patch.safetensors")
    assert network_digest(again) == network_digest(network)

    # Blocks that are computed twice: the same bits.
    erased_in(folder, tmp_path / "recomputed", previews=False, recompute_blocks=True)
    recomputed, _ = load_unet(tmp_path / "recomputed" / "pipeline")
    assert network_digest(recomputed) == network_digest(network)


@pytest.mark.parametrize(
    ("settings", "scales"), [({}, {1.0}), ({"text.guidance.kappa4": 3.0}, {3.0, 4.5})]
)
def test_guidance_that_is_built_in_takes_the_place_of_a_recipes(settings, scales, tmp_path, capsys):
    FAMILIES["FLUX.1"](tmp_path / "pipeline")
    out, how = tmp_path / "run", {"mask.kind": "random", "iterations": 1, **settings}
    erased_in(tmp_path / "pipeline", out, previews=False, **how)
    found = yaml.safe_load((out / "config.yaml").read_text())["text"]["guidance"]
    assert set(found.values()) == scales
    assert "guidance is built into the network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"),
    [("Stable Diffusion 3", {}), ("SANA", {"use_resolution_binning": False})],
)
def test_diffusers_draws_the_one_step_of_a_flow(name, options, tmp_path):
    """By the lines of the folder's README.md."""
    FAMILIES[name](tmp_path / "pipeline")
    before = PipelineFolder.load(tmp_path / "pipeline")
    constants = {"t_init": None, "t_min": 0, "t_max": 1}
    schedule = NoiseSchedule.from_scheduler_config(before.scheduler_config, **constants)
    sigma = float(schedule.noise[schedule.t_init])
    made = {"kind": "generator", "t_init": schedule.t_init, "sigma_init": sigma}
    before.save(tmp_path / "made", card=made)
    assert f"sigmas=[{sigma}]" in (tmp_path / "made" / "README.md").read_text()

    ours = PipelineFolder.load(tmp_path / "made")
    assert ours.scheduler_config == before.scheduler_config
    found = Sampler(seed=3, batch_size=1).latents(ours, ["a bee"])
    noise = torch.randn(ours.network_shape, generator=torch.Generator().manual_seed(3))[None]
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "made")
    theirs.set_progress_bar_config(disable=True)
    how = {"latents": sigma * noise, "sigmas": [sigma], "guidance_scale": 1.0, **options}
    expected = theirs("a bee", output_type="latent", **how).images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_pixart_of_1024_pixels_is_told_sizes(monkeypatch):
    """What `PixArtAlphaPipeline` tells a network of 128x128 latents: pixels, and their ratio."""
    network = PixArtTransformer2DModel(
        sample_size=128, in_channels=2, out_channels=4, num_layers=1, attention_head_dim=12,
        num_attention_heads=2, cross_attention_dim=24, caption_channels=16, norm_num_groups=4,
    )  # fmt: skip
    told = {}
    monkeypatch.setattr(
        network, "forward", lambda x, **given: told.update(given) or SimpleNamespace(sample=x)
    )
    x = torch.zeros(2, 2, 128, 128)
    assert PixArt().call(network, x, torch.tensor([5, 5]), torch.ones(2, 3 * 17)).shape == x.shape
    assert told["added_cond_kwargs"]["resolution"].tolist() == [[1024, 1024]] * 2
    assert told["added_cond_kwargs"]["aspect_ratio"].tolist() == [[1.0]] * 2
    assert told["encoder_hidden_states"].shape == (2, 3, 16)
    assert told["encoder_attention_mask"].shape == (2, 3)
