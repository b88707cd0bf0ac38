"""Model folders: what is written is what is read, and a broken folder says what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from tiny_models import tiny_unet

from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.folder import DESCRIPTION


def small_unet(classes: int = 3) -> UNet2DModel:
    torch.manual_seed(0)
    return tiny_unet(classes, (4, 4, 4))


def tiny_ddpm(classes: int = 3) -> DDPMUNet:
    torch.manual_seed(0)
    return DDPMUNet(
        sample_size=4,
        in_channels=4,
        num_classes=classes,
        channels=8,
        channel_mult=(1, 1),
        norm_num_groups=4,
    )


def tiny_folder(**changes: object) -> ModelFolder:
    values = {
        "network": small_unet(),
        "scheduler": DDPMScheduler(clip_sample=False),
        "class_names": ("ant", "Bee", "cat"),
        "patch_size": 2,
        "figures": {"accuracy": 0.5},
    }
    return ModelFolder(**{**values, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_folder().save(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(saved: Path) -> None:
    before, after = tiny_folder(), ModelFolder.load(saved)
    for name, param in before.network.state_dict().items():
        assert torch.equal(param, after.network.state_dict()[name])
    assert torch.equal(before.scheduler.alphas_cumprod, after.scheduler.alphas_cumprod)
    assert (after.class_names, after.patch_size) == (before.class_names, before.patch_size)
    assert (after.figures, after.kind) == (before.figures, before.kind)
    assert not after.network.training
    assert after.null_label is None


def test_round_trip_of_the_published_network(tmp_path: Path) -> None:
    before = tiny_folder(network=tiny_ddpm())
    before.save(tmp_path)
    after = ModelFolder.load(tmp_path)
    assert isinstance(after.network, DDPMUNet)
    for name, param in before.network.state_dict().items():
        assert torch.equal(param, after.network.state_dict()[name])
    assert before.null_label == after.null_label == 3
    assert after.network_shape == (4, 4, 4)
    assert not after.network.training


def test_class_names_of_the_published_network(tmp_path: Path) -> None:
    tiny_folder(network=tiny_ddpm(), class_names=()).save(tmp_path)
    assert ModelFolder.load(tmp_path).class_names == ("class 0", "class 1", "class 2")
    tiny_folder(network=tiny_ddpm(), class_names=("a", "b", "c", "d")).save(tmp_path)
    with pytest.raises(PeckerError, match="names 4 classes, the network has 3"):
        ModelFolder.load(tmp_path)


@pytest.mark.parametrize("names", [("ant", "Bee", "cat"), ()])
def test_no_class_in_a_table_one_larger(tmp_path: Path, names: tuple[str, ...]) -> None:
    tiny_folder(network=small_unet(classes=4), class_names=names, null_label=3).save(tmp_path)
    folder = ModelFolder.load(tmp_path)
    assert (folder.null_label, folder.num_classes) == (3, 3)


@pytest.mark.parametrize("label", [2, 4])
def test_label_of_no_class_that_the_network_lacks(tmp_path: Path, label: object) -> None:
    tiny_folder(network=small_unet(classes=4), null_label=label).save(tmp_path)
    with pytest.raises(PeckerError, match=f"null_label {label!r} .* behind the 3 classes"):
        ModelFolder.load(tmp_path)


def test_another_label_of_no_class_than_the_network_has(saved: Path) -> None:
    tiny_ddpm().save_pretrained(saved / "unet")
    description = json.loads((saved / DESCRIPTION).read_text())
    (saved / DESCRIPTION).write_text(json.dumps({**description, "null_label": 2}))
    with pytest.raises(PeckerError, match="is 2, but the network's own label of no class is 3"):
        ModelFolder.load(saved)


def test_patches_become_pixels_and_back() -> None:
    folder = tiny_folder()
    assert folder.network_shape == (4, 4, 4)
    assert folder.image_shape == (1, 8, 8)
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.equal(folder.images(folder.encode(images)), images)
    x = folder.encode(images)
    assert torch.equal(x[0, :, 0, 0], images[0, 0, :2, :2].flatten())  # one patch, row by row


def test_bare_unet_folder_with_a_scheduler_beside_it(tmp_path: Path) -> None:
    small_unet().save_pretrained(tmp_path)
    DDPMScheduler(clip_sample=False).save_pretrained(tmp_path / "scheduler")
    folder = ModelFolder.load(tmp_path)
    assert folder.class_names == ("class 0", "class 1", "class 2")
    assert folder.image_shape == folder.network_shape == (4, 4, 4)


def test_another_network_keeps_the_description_and_drops_the_figures() -> None:
    after = tiny_folder().with_network(small_unet(), kind="generator")
    assert (after.kind, after.figures, after.class_names) == (
        "generator",
        {},
        ("ant", "Bee", "cat"),
    )


def test_weights_of_another_network(saved: Path, tmp_path: Path) -> None:
    tiny_ddpm().save_config(tmp_path)
    (saved / "unet" / "config.json").write_text((tmp_path / "config.json").read_text())
    with pytest.raises(PeckerError, match=r"does not fit: \d+ missing: .*; \d+ unexpected: "):
        ModelFolder.load(saved)
