"""A model small enough to sample in milliseconds."""

import pytest
import torch

from pecker_fast.models import ModelFolder
from pecker_fast.models.train_teacher import TeacherRecipe, build_scheduler, build_unet


@pytest.fixture
def tiny_model():
    torch.manual_seed(0)
    recipe = TeacherRecipe(channels=(8, 8), attention=(), patch_size=1)
    unet = build_unet(recipe, num_classes=3, image_shape=(1, 8, 8)).eval()
    return ModelFolder(unet, build_scheduler(), ("circle", "square", "star"))
