"""Replayed iterations are ordinary ones. Here the graph is feigned, on a GPU it is real."""

import pytest
import torch
from feigned_graph import FeignedCapture
from text_toys import text_objective
from toys import assert_same_bits, toy_objective, train, weights

from pecker_fast import backends
from pecker_fast.distill import PeckerTrainer, RunDirectory
from pecker_fast.distill.graph import WARM_UP
from pecker_fast.errors import PeckerRuntimeError

SETTINGS = {"optimizer.backend": "cuda", "iterations": WARM_UP + 5, "logging.every": 1}
OPTIONS = {
    "plain": {},
    "learning rate": {"lr_schedule": "cosine"},
    "moments and decay": {"optimizer.beta1": 0.9, "optimizer.weight_decay": 0.1},
    "all parameters": {"mask.kind": "full"},
    "one set of weights": {"mask.apply": "both"},
    "released gradients": {"mask.apply": "both", "optimizer.release_grads": True},
    "micro batches": {"mask.apply": "both", "micro_batch": 3},
    "bf16": {"precision": "bf16", "mask.apply": "both"},
    "recomputed": {"recompute": True, "mask.apply": "both"},
    "every step": {"generator.every_step": 0.5, "mask.apply": "both", "micro_batch": 3},
    "no scores": {"generator.scores": False, "generator.one_step": 0.5, "mask.apply": "both"},
}

pytestmark = pytest.mark.skipif(
    "cuda" not in backends.on_host(), reason="the CUDA kernels do not run on the CPU here"
)


@pytest.fixture
def feigned(monkeypatch):
    capture = FeignedCapture(monkeypatch)
    monkeypatch.setattr(PeckerTrainer, "_capture", lambda self: capture)
    return capture


def results(trainer, metrics):
    return {
        "losses": [m.losses for m in metrics],
        "generator": weights(trainer.generator),
        "pseudo_score": weights(trainer.pseudo_score),
        "result": weights(trainer.ema_generator()),
        "optimizer": trainer.learner.state_dict()["state"],
    }


@pytest.mark.parametrize(
    ("make", "options"),
    [
        *((toy_objective, options) for options in OPTIONS.values()),
        pytest.param(text_objective, {"mask.apply": "both"}, marks=pytest.mark.slow),
    ],
    ids=[*OPTIONS, "prompts"],
)
def test_replays_change_no_bit(make, options, monkeypatch):
    ordinary = train(make(SETTINGS | options))
    assert ordinary[0]._graph.reason == "no CUDA graph on cpu"
    capture = FeignedCapture(monkeypatch)
    monkeypatch.setattr(PeckerTrainer, "_capture", lambda self: capture)
    replayed = train(make(SETTINGS | options))
    assert (capture.captures, capture.replays) == (1, 5)
    assert_same_bits(results(*ordinary), results(*replayed))
    assert replayed[0].verify_frozen().frozen_changed == 0


def test_a_refreshed_mask_is_captured_anew(monkeypatch):
    options = {"mask.refresh_every": WARM_UP + 2, "iterations": 2 * WARM_UP + 4}
    ordinary = train(toy_objective(SETTINGS | options))
    capture = FeignedCapture(monkeypatch)
    monkeypatch.setattr(PeckerTrainer, "_capture", lambda self: capture)
    replayed = train(toy_objective(SETTINGS | options))
    assert (capture.captures, capture.replays) == (2, 4)
    assert_same_bits(results(*ordinary), results(*replayed))


@pytest.mark.parametrize("first", [2, WARM_UP + 2], ids=["before", "after"])
def test_resuming_is_exact(tmp_path, feigned, first):
    """A run killed before or after its capture, and started again, which captures anew."""
    whole = train(toy_objective(SETTINGS | {"lr_schedule": "constant"}))
    with RunDirectory(tmp_path) as directory:
        train(toy_objective(SETTINGS | {"iterations": first}), run_directory=directory)
    with RunDirectory(tmp_path) as directory:
        resumed = train(toy_objective(SETTINGS), run_directory=directory)
    a, b = results(*whole), results(*resumed)
    assert a.pop("losses")[first:] == b.pop("losses")
    assert_same_bits(a, b)


def test_what_cannot_be_captured_runs_as_usual(monkeypatch):
    class Capture(FeignedCapture):
        def capture(self, work):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    ordinary = train(toy_objective(SETTINGS))
    monkeypatch.setattr(PeckerTrainer, "_capture", lambda self: Capture(monkeypatch))
    with pytest.warns(UserWarning, match="no CUDA graph: .* not permitted when stream is capt"):
        usual = train(toy_objective(SETTINGS))
    assert usual[0]._graph.reason.endswith("not permitted when stream is capturing")
    assert_same_bits(results(*ordinary), results(*usual))
    assert isinstance(usual[0].learner.optimizer.param_groups[0]["lr"], float)

    def unusable(self):
        raise PeckerRuntimeError("start the run again with graph: off")

    monkeypatch.setattr(Capture, "check", unusable)
    with pytest.raises(PeckerRuntimeError, match="graph: off"):
        train(toy_objective(SETTINGS))


def test_cudnn_tries_its_algorithms_before_the_capture_alone(monkeypatch):
    trainer = PeckerTrainer(toy_objective(SETTINGS))
    compute, seen = trainer._graph._compute, []

    def watched(inputs):
        seen.append(torch.backends.cudnn.benchmark)
        return compute(inputs)

    monkeypatch.setattr(trainer._graph, "_compute", watched)
    list(trainer.run())
    assert seen == [True] * WARM_UP + [False] * (SETTINGS["iterations"] - WARM_UP)
    assert not torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    trainer, seen[:] = PeckerTrainer(toy_objective(SETTINGS)), []
    compute = trainer._graph._compute
    monkeypatch.setattr(trainer._graph, "_compute", watched)
    next(trainer.run())
    assert seen == [False]


def test_an_optimizer_that_counts_on_the_host_is_left_as_it_was(monkeypatch):
    """torch's AdamW advances its step count on the host, where a failed capture leaves it."""

    class Capture(FeignedCapture):
        def capture(self, work):
            for state in self.trainer._psi.optimizer.state.values():
                state["step"] += 1
            raise RuntimeError("waits for the device")

    def make(network, mask, lr):
        return torch.optim.AdamW(network.parameters(), lr)

    capture = Capture(monkeypatch)
    monkeypatch.setattr(PeckerTrainer, "_capture", lambda self: capture)
    capture.trainer = PeckerTrainer(toy_objective(SETTINGS), make_optimizer=make)
    with pytest.warns(UserWarning, match="waits for the device"):
        list(capture.trainer.run())
    steps = {float(s["step"]) for s in capture.trainer._psi.optimizer.state.values()}
    assert steps == {float(SETTINGS["iterations"])}
