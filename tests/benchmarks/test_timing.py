"""benchmarks/timing.py: what is measured, and between what."""

import itertools
import json
import time

import pytest
import torch


def test_turns_and_quantiles():
    from timing import Timing, in_turns

    order = []
    times = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    assert order == 5 * ["a", "b"]  # two turns warm up
    assert len(times["a"].ms) == 3 and times["a"].host_us is None
    timing = Timing([float(i) for i in range(11)])
    found = timing.columns()
    assert (found["p50_ms"], found["p20_ms"], found["p80_ms"], found["min_ms"]) == (5, 2, 8, 0)
    assert set(Timing([4.0]).columns().values()) == {4.0, None}


class FakeEvent:
    """An event that notes when it was recorded, on a clock that the calls move."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = FakeEvent.now

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.fixture
def timer(monkeypatch):
    """A timer on that clock, whose flushes take 4 ms and are counted."""
    import timing

    monkeypatch.setattr(timing, "_FLUSH_BYTES", 1024)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def flush(timer):
        FakeEvent.now += 4.0
        timer.flushes = getattr(timer, "flushes", 0) + 1

    monkeypatch.setattr(timing.GpuTimer, "_flush", flush)
    return timing.GpuTimer("cpu")


def test_gpu_times_are_between_events_around_the_call_alone(timer):
    durations = itertools.cycle([3.0, 5.0])
    order = []

    def call():
        order.append("call")
        FakeEvent.now += next(durations)

    def prepare():
        order.append("prepare")
        FakeEvent.now += 1000.0

    timer.flushes = 0
    found = timer.measure(call, 4, prepare)
    assert sorted(found.ms) == [3.0, 3.0, 5.0, 5.0]
    assert order == ["prepare", "call"] * (3 + 4 + 4)  # warm-up, host, events
    assert timer.flushes == 4  # each event run starts with an empty cache
    assert found.host_us > 0


def test_the_queue_is_filled_for_as_long_as_the_host_needs(timer, monkeypatch):
    """A call that takes the host 20 ms, flushes of 4 ms: 30 ms of them, at most _MAX_FLUSHES."""
    import timing

    for most, expected in ((200, range(8, 12)), (5, (5,))):
        monkeypatch.setattr(timing, "_MAX_FLUSHES", most)
        timer.flushes = 0
        timer.measure(lambda: time.sleep(0.02), repeats=1)
        assert timer.flushes in expected


def test_machine_facts_of_a_card(monkeypatch):
    from timing import machine

    assert machine()["device"] == machine()["cpu"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    about = machine("cuda:0")
    assert about["device"] == "NVIDIA H100"
    assert {"driver", "cuda", "triton", "torch", "commit", "cpu"} <= about.keys()
    assert json.loads(json.dumps(about)) == about
