"""Phases that overlap: who waits for whom. The second stream is feigned, there is none on a CPU."""

import contextlib

import pytest
import torch
from feigned_graph import FeignedCapture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import assert_same_bits, toy_objective, train, weights

from pecker_fast import backends
from pecker_fast.distill import PeckerTrainer, side_stream
from pecker_fast.distill.graph import WARM_UP

SETTINGS = {"overlap": True, "iterations": 3, "optimizer.backend": "reference"}


class Streams(TorchDispatchMode):
    """A `SideStream` that notes when each stream touched what, and how far the other one was known.

    Every operation is launched on the stream of the block that it is in. What autograd's engine
    orders by itself on a card, backward passes, runs on the main stream here.
    """

    def __init__(self, joins=True):
        super().__init__()
        self.at, self.launched, self.joins = "main", {"main": 0, "side": 0}, joins
        self.known = {"main": 0, "side": 0}  # of the other stream
        self.touched, self.kept, self.races, self.order = {}, [], [], []

    @contextlib.contextmanager
    def beside(self):
        self.order.append("fork")
        self.known["side"], self.at = self.launched["main"], "side"
        yield
        self.at = "main"

    def join(self, *made):
        self.order.append(f"join {len(made)}")
        if self.joins:
            self.known["main"] = self.launched["side"]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.launched[self.at] += 1
        writes = [
            arg
            for arg, spec in zip(args, func._schema.arguments, strict=False)
            if spec.alias_info is not None and spec.alias_info.is_write
        ]
        given = storages((args, kwargs))
        written = storages(writes) | (storages(out) - given)
        for storage in given | written:
            self._touch(storage, storage in written, str(func))
        self.kept.append(out)  # so that no address comes again
        return out

    def _touch(self, storage, write, name):
        """A storage that the other stream has touched: one of them writes, and it is not known."""
        other = "side" if self.at == "main" else "main"
        read_at, written_at = self.touched.setdefault(storage, {}).get(other, (0, 0))
        if max(written_at, read_at if write else 0) > self.known[self.at]:
            self.races.append((self.at, name))
        read_at, written_at = self.touched[storage].get(self.at, (0, 0))
        now = self.launched[self.at]
        self.touched[storage][self.at] = (now, now if write else written_at)


def storages(tree):
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return {tensor.untyped_storage()._cdata for tensor in tensors if tensor.numel()}


def results(objective, streams=None):
    with pytest.MonkeyPatch.context() as patch, streams or contextlib.nullcontext():
        patch.setattr(PeckerTrainer, "_side_stream", lambda self: streams)
        trainer, metrics = train(objective)
    networks = (trainer.generator, trainer.pseudo_score, trainer.ema_generator())
    return [m.losses for m in metrics], list(map(weights, networks))


@pytest.mark.parametrize(
    "options",
    [{}, {"generator.every_step": 0.5, "generator.one_step": 0.5}, {"diff_instruct": True}],
    ids=["plain", "more terms", "no gradient through the scores"],
)
def test_phases_overlap_without_races_and_change_no_bit(options):
    settings = SETTINGS | options
    ordinary = results(toy_objective(settings, dropout=0.0))
    streams = Streams()
    assert_same_bits(results(toy_objective(settings, dropout=0.0), streams), ordinary)
    assert streams.races == []
    assert streams.launched["side"] > 50
    # x_g, x_t, the teacher's prediction; then the backward passes, before theta moves.
    assert streams.order == ["fork", "join 3", "join 0"] * SETTINGS["iterations"]


def test_what_is_not_waited_for_is_found():
    streams = Streams(joins=False)
    results(toy_objective(SETTINGS, dropout=0.0), streams)
    assert {stream for stream, _ in streams.races} == {"main"}


def test_captured_iterations_overlap(monkeypatch):
    if "cuda" not in backends.on_host():
        pytest.skip("the CUDA kernels do not run on the CPU here")
    settings = {"iterations": WARM_UP + 2, "optimizer.backend": "cuda"}
    ordinary = results(toy_objective(settings, dropout=0.0))
    capture = FeignedCapture(monkeypatch)
    monkeypatch.setattr(PeckerTrainer, "_capture", lambda self: capture)
    replayed = results(toy_objective(SETTINGS | settings, dropout=0.0), Streams())
    assert (capture.captures, capture.replays) == (1, 2)
    assert_same_bits(replayed, ordinary)


def test_nothing_overlaps_on_a_cpu():
    assert PeckerTrainer(toy_objective(SETTINGS))._side_stream() is None


@pytest.mark.parametrize(
    "options",
    [
        {"share_generator_pass": True},
        {"micro_batch": 2},
        {"recompute": True},
        {"generator.scores": False, "generator.one_step": 1.0},
        {"mask.apply": "both"},
    ],
    ids=str,
)
def test_what_has_no_two_phases_to_overlap(options):
    from pecker_fast import PeckerError

    with pytest.raises(PeckerError, match="overlap"):
        toy_objective(SETTINGS | options)
    if "mask.apply" in options:
        toy_objective(SETTINGS | options | {"mask.share_weights": False})


def test_events_order_the_streams(monkeypatch):
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    current = [Stream("main")]

    @contextlib.contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    side = side_stream.SideStream(torch.device("cuda", 0))
    with side.beside():
        log.append(f"on {current[-1].name}")
    made = torch.ones(1)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: log.append(f"kept for {stream.name}")
    )
    side.join(made)
    assert log == ["side waits for main", "on side", "main waits for side", "kept for main"]
