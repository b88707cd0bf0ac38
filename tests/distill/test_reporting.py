"""What a run says: losses, TensorBoard, the progress bar, and why it stopped."""

import sys

import pytest
import torch
from toys import assert_same_bits, toy_objective, train, weights

from pecker_fast.distill import PeckerTrainer, RunDirectory
from pecker_fast.distill.networks import predict_noise
from pecker_fast.errors import PeckerError


class Poison:
    """An adapter whose answer for one network and class is NaN from some iteration on."""

    def __init__(self, which, label):
        self.which, self.label, self.trainer, self.start = which, label, None, 10**9

    def __call__(self, network, x_t, t, condition):
        noise = predict_noise(network, x_t, t, condition)
        trainer = self.trainer
        if trainer is None or trainer.iteration < self.start:
            return noise
        if network is not getattr(trainer, self.which) or trainer.generator.training:
            return noise
        return torch.where((condition == self.label)[:, None, None, None], torch.nan, noise)


@pytest.mark.parametrize(("label", "term"), [(0, "forget"), (2, "remain")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, label, term):
    overrides = {"iterations": 9, "logging.every": 4, "batch_size": 16}
    poison = Poison("pseudo_score", label)
    with RunDirectory(tmp_path) as directory:
        trainer = PeckerTrainer(toy_objective(overrides, predict=poison), run_directory=directory)
        poison.trainer, poison.start = trainer, 4
        message = (
            rf"^the pseudo_score loss \({term} term\) is nan at iteration 5: stopped; the "
            r"checkpoint of iteration 3 is intact; lower generator\.lr"
        )
        seen = []
        with pytest.raises(PeckerError, match=message):
            for metrics in trainer.run():
                seen.append(metrics.iteration)
        assert seen[-1] == 5  # the next reading was due before the checkpoint of iteration 6
        assert directory.iterations() == [3]
    with RunDirectory(tmp_path) as directory:
        resumed, _ = train(toy_objective(overrides), run_directory=directory)
    healthy, _ = train(toy_objective(overrides))
    assert_same_bits(weights(resumed.generator), weights(healthy.generator))


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with RunDirectory(tmp_path) as directory:
        objective = toy_objective({"logging.tensorboard": True})
        trainer = PeckerTrainer(objective, run_directory=directory)
        with pytest.raises(PeckerError, match=r"pip install 'pecker-fast\[tensorboard\]'"):
            list(trainer.run())


def test_progress_is_off_unless_asked(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    train(toy_objective({"iterations": 2}))
    assert capsys.readouterr().err == ""
    train(toy_objective({"iterations": 2}), progress=True)
    assert "2 of 2" in capsys.readouterr().err
