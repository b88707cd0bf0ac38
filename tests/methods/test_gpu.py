"""Baselines on a GPU: the losses of the CPU, frozen bits, resuming."""

import pytest
import torch
from small import small_config, small_images, small_model, train

from pecker_fast.methods.real_images import BaselineObjective
from pecker_fast.methods.trainer import BaselineTrainer
from pecker_fast.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("gpu")


def objective(method, overrides=None, model=None):
    settings = {"lambda_remain": 0.0} if method == "esd" else {}
    config = small_config({**settings, **(overrides or {})}, method)
    return BaselineObjective(model or small_model(), small_images(), config, torch.device("cuda"))


@pytest.mark.parametrize("method", ["random_label", "negative_gradient", "fine_tune", "esd"])
def test_frozen_entries_keep_their_bits_and_a_run_is_resumed(method, tmp_path):
    whole, _ = train(objective(method))
    check = whole.verify_frozen(whole.erased_network())
    assert check.frozen_changed == 0 < check.salient_changed
    for stop in (True, False):
        with RunDirectory(tmp_path) as directory:
            trainer = BaselineTrainer(objective(method), run_directory=directory)
            for done in trainer.run():
                if stop and done.iteration == 4:
                    break
    for name, value in whole.network.named_parameters():
        assert torch.equal(value, trainer.network.get_parameter(name)), name


def test_the_model_stays_where_it_is():
    model = small_model()
    made = objective("esd", model=model)
    train(made)
    assert next(model.network.parameters()).device.type == "cpu"
    assert next(made.frozen.parameters()).device.type == "cuda"
