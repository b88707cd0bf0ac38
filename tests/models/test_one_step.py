"""A generator's folder draws in diffusers what our own sampler draws."""

import json

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from tiny_models import tiny_scheduler, tiny_unet
from tiny_pipeline import CHANNELS, SIDE, save_tiny_pipeline

from pecker_fast import ModelFolder, OneStepPipeline, PeckerError
from pecker_fast.distill.losses import one_step_sample
from pecker_fast.distill.networks import diffusers_predictor
from pecker_fast.distill.schedule import NoiseSchedule
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.one_step import one_step_scheduler
from pecker_fast.models.pipeline import PipelineFolder

NAMES = ("circle", "square", "star")
# diffusers multiplies up to 626 factors in float32, each rounded to 6e-8: 4e-5 of a_t at worst, in
# images of values up to some 10. Here it was 1e-5.
CLOSE = {"rtol": 1e-4, "atol": 2e-4}


def expected_images(network, schedule, noise, condition, predict=None):
    options = {} if predict is None else {"predict": predict}
    with torch.no_grad():
        return one_step_sample(network, noise, schedule.t_init, condition, schedule, **options)


def class_model(kind):
    torch.manual_seed(0)
    if kind == "ddpm":
        unet = DDPMUNet(8, 1, 3, 4, (1, 2), (1,), 1, 2)
        with torch.no_grad():
            for param in unet.parameters():
                param.add_(0.1 * torch.randn_like(param))
        return ModelFolder(unet.eval(), tiny_scheduler(), NAMES)
    shape = (4, 4, 4) if kind == "patches" else (1, 8, 8)
    return ModelFolder(
        tiny_unet(image_shape=shape), tiny_scheduler(), NAMES, 2 if kind == "patches" else 1
    )


@pytest.mark.parametrize("kind", ["plain", "patches", "ddpm"])
@pytest.mark.parametrize("t_init", [150, 440])
def test_a_class_model_in_one_step(kind, t_init, tmp_path):
    teacher = class_model(kind)
    made = ModelFolder(
        teacher.network,
        teacher.scheduler,
        NAMES,
        teacher.patch_size,
        {"t_init": t_init},
        "generator",
    )
    made.save(tmp_path / "model")
    read = ModelFolder.load(tmp_path / "model")
    ours, theirs = (json.loads(each.scheduler.to_json_string()) for each in (read, made))
    assert ours == theirs
    assert type(read.scheduler) is DDPMScheduler and read.kind == "generator"
    schedule = NoiseSchedule.from_scheduler(teacher.scheduler, t_init=t_init)
    noise, labels = torch.randn(4, *teacher.network_shape), torch.tensor([0, 1, 2, 1])
    drawn = expected_images(teacher.network, schedule, noise, labels)
    expected = made.images(drawn) / 2 + 0.5
    pipeline = OneStepPipeline.from_pretrained(tmp_path / "model")
    found = pipeline(labels, noise=noise, output_type="pt").images
    torch.testing.assert_close(found, expected, **CLOSE)
    assert 0.05 < float(((expected > 0) & (expected < 1)).float().mean())  # not all clamped
    pictures = pipeline([2, 0], generator=torch.Generator().manual_seed(3)).images
    again = pipeline([2, 0], torch.Generator().manual_seed(3), output_type="np").images
    assert [picture.size for picture in pictures] == [(8, 8)] * 2 and again.shape == (2, 8, 8, 1)
    with pytest.raises(PeckerError, match="noise must be"):
        pipeline([2], noise=noise)


def test_diffusers_alone_draws_a_plain_class_model_in_one_step(tmp_path):
    teacher = class_model("plain")
    ModelFolder(teacher.network, teacher.scheduler, NAMES, 1, {"t_init": 440}, "generator").save(
        tmp_path
    )
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__module__.startswith("diffusers.")
    labels = [0, 2, 1]
    found = pipeline(
        3, class_labels=labels, generator=torch.Generator().manual_seed(5), output_type="pt"
    ).images
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    schedule = NoiseSchedule.from_scheduler(teacher.scheduler, t_init=440)
    drawn = expected_images(teacher.network, schedule, noise, torch.tensor(labels))
    torch.testing.assert_close(found, teacher.images(drawn) / 2 + 0.5, **CLOSE)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_pipeline_in_one_step_without_a_line_of_ours(prediction, tmp_path):
    save_tiny_pipeline(tmp_path / "teacher", prediction)
    (tmp_path / "teacher" / "README.md").write_text("# A model card\n")
    teacher = PipelineFolder.load(tmp_path / "teacher")
    about = {"kind": "generator", "t_init": 625}
    teacher.save(tmp_path / "made", card=about)
    read = PipelineFolder.load(tmp_path / "made")
    assert read.scheduler_config == teacher.scheduler_config and read.description == about
    text = (tmp_path / "made" / "README.md").read_text()
    assert text.startswith("# A model card\n") and "num_inference_steps=1" in text
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "made")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, CHANNELS, SIDE, SIDE)
    prompts = ["a cat", "a dog"]
    found = pipeline(
        prompts, latents=noise, num_inference_steps=1, guidance_scale=1.0, output_type="latent"
    ).images
    schedule = NoiseSchedule.from_scheduler_config(
        teacher.scheduler_config, t_init=625, t_min=20, t_max=980
    )
    predict = diffusers_predictor(schedule, teacher.architecture.call, prediction)
    drawn = expected_images(
        teacher.network, schedule, noise, teacher.texts.encode(prompts), predict
    )
    torch.testing.assert_close(found, drawn, **CLOSE)


def test_a_schedule_given_as_a_table_is_cut_off():
    betas = [0.001 * (1 + i) for i in range(20)]
    whole = DDPMScheduler(20, trained_betas=betas)
    cut = one_step_scheduler(whole.config, 7)
    assert json.loads(cut.to_json_string())["trained_betas"] == betas[:8]
    cut.set_timesteps(1)
    sigma = ((1 - whole.alphas_cumprod[7]) / whole.alphas_cumprod[7]).sqrt()
    torch.testing.assert_close(cut.sigmas[0], sigma)
    assert cut.timesteps.tolist() == [7]


def test_a_schedule_without_signal_at_the_end_is_cut_off_as_it_is():
    """Rescaled betas are no longer linear: the one step must start at the teacher's sigma."""
    whole = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    cut = one_step_scheduler(whole.config, 440)
    cut.set_timesteps(1)
    sigma = ((1 - whole.alphas_cumprod[440]) / whole.alphas_cumprod[440]).sqrt()
    torch.testing.assert_close(cut.sigmas[0], sigma, rtol=1e-4, atol=0)
