"""benchmarks/bench.py: rows are gated, timed and written as they come; and the pages' tables."""

import itertools
import json
import weakref
from dataclasses import dataclass

import pytest
import torch


def fake_case(builders, name="fake"):
    """A case with these providers."""
    from bench import Case

    @dataclass(frozen=True)
    class Fake(Case):
        benchmark = "fake"

        density: float

        def providers(self, setup):
            return {key: lambda build=build: build() for key, build in builders.items()}

    return Fake(name, 0.1)


def provider(match=None, call=lambda: None, **columns):
    from bench import Provider

    return lambda: Provider(call, match, columns)


def raising(error):
    def build():
        raise error

    return build


def test_a_wrong_result_gets_no_time_and_the_others_do(run, capsys):
    from bench import NotApplicable

    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 1.")
    wrong = provider(False, call=lambda: pytest.fail("it was called"))
    builders = {"torch_fused": provider(), "right": provider(True, extra=1), "wrong": wrong}
    builders |= {"absent": raising(NotApplicable("not here")), "large": raising(memory)}
    code, result = run([fake_case(builders)])
    assert code == 1 and result["complete"] and result["failures"] == []
    rows = {row["provider"]: row for row in result["rows"]}
    assert {name for name, row in rows.items() if "p50_ms" in row} == {"torch_fused", "right"}
    assert rows["right"]["extra"] == 1 and rows["right"]["preset"] == "fake"
    assert rows["wrong"]["skipped"] == "its result is wrong"
    assert rows["absent"]["skipped"] == "not here"
    assert rows["large"]["skipped"] == "CUDA out of memory. Tried to allocate 9 GiB"
    printed = capsys.readouterr().out
    assert "| ms | vs torch fused, dense |" in printed and "absent: no time: not here" in printed


def test_what_is_cut_off_or_fails_leaves_the_other_rows(run, tmp_path):
    good = fake_case({"a": provider(True)})
    code, result = run([fake_case({"a": raising(KeyError("x"))}, "bad"), good], "--commit", "abc")
    assert code == 1 and result["machine"]["commit"] == "abc"
    assert result["failures"] == ["fake bad density=0.1: KeyError: 'x'"]
    assert [row["preset"] for row in result["rows"]] == ["fake"]
    with pytest.raises(KeyboardInterrupt):
        run([good, fake_case({"b": raising(KeyboardInterrupt())})])
    result = json.loads((tmp_path / "rows.json").read_text())
    assert not result["complete"] and [row["provider"] for row in result["rows"]] == ["a"]


def test_cases_and_providers_can_be_chosen(run, capsys):
    cases = [fake_case({"a": provider(True), "b": provider(True)}, name) for name in ("one", "two")]
    _, result = run(cases, "--only", "two", "--provider", "b")
    assert [(row["preset"], row["provider"]) for row in result["rows"]] == [("two", "b")]
    assert run(cases, "--provider", "c")[0] == 1
    capsys.readouterr()
    for options, named in ((["--device", "cuda"], "CUDA"), (["--backend", "quantum"], "quantum")):
        if named != "CUDA" or not torch.cuda.is_available():
            assert run(cases, *options)[0] == 2
            error = capsys.readouterr().err
            assert named in error and error.count("\n") == 1
    assert run(cases, "--list")[0] == 0
    assert capsys.readouterr().out == "fake one density=0.1\nfake two density=0.1\n"


def test_on_a_gpu_one_follows_the_other_and_is_freed():
    """The GPU's path with a timer that takes no time."""
    from bench import Provider, Setup
    from timing import Timing

    class Timer:
        def measure(self, call, repeats, prepare):
            prepare()
            call()
            return Timing([1.0] * repeats, host_us=5.0)

    alive, order = [], []

    def build(name):
        assert all(reference() is None for reference in alive)
        held = torch.ones(3)
        alive.append(weakref.ref(held))
        return Provider(
            lambda: order.append((name, int(held.sum()))), True, {}, lambda: order.append(name)
        )

    case = fake_case({name: (lambda name=name: build(name)) for name in "ab"})
    rows = list(case.rows(Setup("cpu", [], 2, {}, Timer())))
    assert order == ["a", ("a", 3), "b", ("b", 3)]
    assert {(row["p50_ms"], row["host_us"]) for row in rows} == {(1.0, 5.0)}


class FakeEvent:
    """An event that notes when it was recorded, on a clock that the calls move."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = FakeEvent.now

    def elapsed_time(self, end):
        return end.at - self.at


def test_gpu_times_are_between_events_around_the_call_alone(monkeypatch):
    import timing

    monkeypatch.setattr(timing, "_FLUSH_BYTES", 1024)
    monkeypatch.setattr(timing.GpuTimer, "_flush", lambda timer: move("flush", 4.0))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    durations, order = itertools.cycle([3.0, 5.0]), []

    def move(what, ms):
        order.append(what)
        FakeEvent.now += ms

    timer = timing.GpuTimer("cpu")
    order.clear()
    found = timer.measure(lambda: move("call", next(durations)), 4, lambda: move("prepare", 1e3))
    assert sorted(found.ms) == [3.0, 3.0, 5.0, 5.0] and found.host_us > 0
    # Warm-up and host, then events, which start with an empty cache.
    assert order == ["prepare", "call"] * 7 + ["prepare", "flush", "call"] * 4


def test_speed_ups_and_tables_are_of_checked_rows(tmp_path, monkeypatch):
    import tables
    from rows import speed_up

    def row(provider, ms, match=True, **case):
        head = {"benchmark": "step_time", "provider": provider, "p50_ms": ms, "match": match}
        return {**head, "preset": "sd15", "density": 0.1, "mask": "heavy", **case}

    ours, base = row("pecker_fast[cuda]", 1.4), row("torch_fused", 8.96, None)
    dense = row("pecker_fast[cuda]", 9.0, mask="none", roof_share=0.95)
    assert speed_up(ours, [dense, base, ours], "torch_fused") == pytest.approx(6.4)
    assert speed_up(ours | {"match": None}, [base], "torch_fused") is None
    assert speed_up(ours, [base | {"match": False}], "torch_fused") is None
    assert speed_up(dense, [base], "torch_fused") is None

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    about = {"device": "H100", "torch": "2.11", "cuda": "13.0", "commit": "abc"}
    file = tmp_path / "h100.json"
    file.write_text(json.dumps({"machine": about, "complete": False, "rows": [ours, base, dense]}))
    place = "a\n<!-- table: {} -->\n{}<!-- end -->\nb"
    assert tables.render(place.format("topk", "old\n")) == place.format("topk", "")
    text = tables.render(place.format("cards", "old\n"))
    assert "| mask | ms | of bandwidth | vs torch fused, dense |\n" in text
    assert "\n| heavy, density 0.1 | 1.4 | - | 6.4 x |\n| no mask | 9.0 | 95% | - |\n\n" in text
    assert "H100, torch 2.11, CUDA 13.0, commit abc. Not every case was measured." in text
    file.write_text(json.dumps({"machine": about, "rows": [ours | {"match": False}]}))
    with pytest.raises(SystemExit, match="failed its gate"):
        tables.render(place.format("cards", ""))
