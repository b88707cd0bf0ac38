"""The training iteration on a GPU: fused blocks, one graph, no waiting, one set of weights."""

import pytest
import torch
from toys import assert_same_bits, tiny_unet, toy_objective, train, weights

from pecker_fast.distill import PeckerTrainer
from pecker_fast.distill.graph import WARM_UP

pytestmark = pytest.mark.usefixtures("gpu")

SETTINGS = {"iterations": WARM_UP + 5, "logging.every": 1, "lr_schedule": "cosine"}
OPTIONS = {
    "masked generator": {},
    "one set of weights": {"mask.apply": "both", "optimizer.release_grads": True},
    "three sets": {"mask.apply": "both", "mask.share_weights": False},
    "bf16": {"mask.apply": "both", "precision": "bf16"},
    "autocast": {"precision": "autocast"},
    "recomputed": {"mask.apply": "both", "recompute": True},
}


def objective(options):
    made = toy_objective(SETTINGS | options)
    torch.manual_seed(2)
    made.original = tiny_unet().eval().requires_grad_(False)
    low = options.get("precision") == "bf16"
    made.teacher = tiny_unet().cuda().to(torch.bfloat16 if low else torch.float32)
    made.teacher.load_state_dict(made.original.state_dict())
    made.teacher.eval().requires_grad_(False)
    made.device = torch.device("cuda", torch.cuda.current_device())
    return made


@pytest.mark.parametrize("accelerate", [False, True], ids=["torch blocks", "fused blocks"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_graph_changes_no_bit(options, accelerate):
    """Eager and replayed iterations: the same losses and weights; it really was captured."""
    runs = []
    for graph in ("off", "auto"):
        trainer, metrics = train(objective(options | {"graph": graph, "accelerate": accelerate}))
        assert trainer._graph.captured == (graph == "auto"), trainer._graph.reason
        assert trainer.verify_frozen().frozen_changed == 0
        runs.append(
            [[m.losses for m in metrics], weights(trainer.generator), weights(trainer.pseudo_score)]
        )
    assert_same_bits(*runs)


def test_iterations_never_wait():
    """Neither eager ones nor replayed ones; the losses are read every N."""
    trainer = PeckerTrainer(objective({"logging.every": 100, "logging.checkpoint_every": 100}))
    iterations = trainer.run()
    next(iterations)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(WARM_UP - 1):
            next(iterations)
        torch.cuda.set_sync_debug_mode("default")
        next(iterations)  # captures
        torch.cuda.set_sync_debug_mode("error")
        next(iterations)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer._graph.captured


def test_a_capture_that_fails_changes_nothing(monkeypatch):
    """The host waits in the middle of it; dropout's generator and the memory pool must go on."""
    runs = []
    for waits in (False, True):
        trainer = PeckerTrainer(objective({"graph": "auto" if waits else "off"}))
        compute = trainer._graph._compute

        def waiting(inputs, compute=compute):
            losses = compute(inputs)
            if torch.cuda.is_current_stream_capturing():
                losses[0].sum().item()
            return losses

        if waits:
            monkeypatch.setattr(trainer._graph, "_compute", waiting)
            with pytest.warns(UserWarning, match="no CUDA graph"):
                metrics = list(trainer.run())
        else:
            metrics = list(trainer.run())
        runs.append([[m.losses for m in metrics], weights(trainer.generator)])
    assert_same_bits(*runs)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.nn.functional.dropout(torch.ones(100, device="cuda"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # the next capture finds nothing of the last one
        torch.rand(3, device="cuda")
    graph.replay()
