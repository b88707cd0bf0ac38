"""benchmarks/bench.py: rows are gated, timed and written as they come; failures are kept apart."""

import json
from dataclasses import dataclass

import pytest
import torch


def fake_case(builders, name="fake"):
    """A case with these providers."""
    from bench import Case

    @dataclass(frozen=True)
    class Fake(Case):
        benchmark = "fake"
        baselines = ("base",)

        def providers(self, setup):
            return {key: lambda build=build: build() for key, build in builders.items()}

    return Fake(name)


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
    case = fake_case(
        {
            "base": provider(),
            "right": provider(True, extra=1),
            "wrong": provider(False, call=lambda: pytest.fail("it was called")),
            "absent": raising(NotApplicable("not here")),
            "large": raising(memory),
            "figure alone": provider(None, call=None),
        }
    )
    code, result = run([case])
    assert code == 1 and result["complete"] and result["failures"] == []
    rows = {row["provider"]: row for row in result["rows"]}
    assert {name for name, row in rows.items() if "p50_ms" in row} == {"base", "right"}
    assert rows["right"]["extra"] == 1 and rows["right"]["preset"] == "fake"
    assert rows["wrong"]["skipped"] == "its result is wrong"
    assert rows["absent"]["skipped"] == "not here"
    assert rows["large"]["skipped"] == "CUDA out of memory. Tried to allocate 9 GiB"
    assert "x base" in capsys.readouterr().out


def test_speed_ups_are_those_of_checked_rows():
    from rows import speed_up

    def row(provider, ms, match, **case):
        return {"provider": provider, "p50_ms": ms, "match": match, "preset": "a", **case}

    ours, base = row("ours", 2.0, True), row("base", 6.0, None)
    other = row("base", 9.0, None, preset="b")
    assert speed_up(ours, [other, base, ours], "base") == 3
    assert speed_up(row("ours", 2.0, None), [base], "base") is None  # not checked
    assert speed_up(ours, [row("base", 6.0, False)], "base") is None
    assert speed_up(ours, [row("base", None, None)], "base") is None
    assert speed_up(ours, [other], "base") is None


def test_a_run_that_is_cut_off_leaves_what_it_measured(run, tmp_path):
    cases = [fake_case({"a": provider(True)}), fake_case({"b": raising(KeyboardInterrupt())})]
    with pytest.raises(KeyboardInterrupt):
        run(cases)
    result = json.loads((tmp_path / "rows.json").read_text())
    assert not result["complete"] and [row["provider"] for row in result["rows"]] == ["a"]


def test_a_case_that_fails_does_not_take_the_others_with_it(run):
    cases = [fake_case({"a": raising(KeyError("x"))}, "bad"), fake_case({"a": provider(True)})]
    code, result = run(cases, "--commit", "abc1234")
    assert code == 1 and result["machine"]["commit"] == "abc1234"
    assert result["failures"] == ["fake bad: KeyError: 'x'"]
    assert [row["preset"] for row in result["rows"]] == ["fake"]


def test_cases_and_providers_can_be_chosen(run, capsys):
    cases = [fake_case({"a": provider(True), "b": provider(True)}, name) for name in ("one", "two")]
    _, result = run(cases, "--only", "two", "--provider", "b")
    assert [(row["preset"], row["provider"]) for row in result["rows"]] == [("two", "b")]
    assert run(cases, "--minutes", "-1")[1] == result  # none was started, nothing written
    assert run(cases, "--provider", "c")[0] == 1
    assert run(cases, "--only", "three")[0] == 2
    capsys.readouterr()
    assert run(cases, "--list")[0] == 0
    assert capsys.readouterr().out == "fake one\nfake two\n"


@pytest.mark.parametrize(
    ("options", "named"), [(["--device", "cuda"], "CUDA"), (["--backend", "quantum"], "quantum")]
)
def test_what_cannot_be_is_one_line(run, options, named, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run([fake_case({})], *options)[0] == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1


def test_on_a_gpu_one_follows_the_other_and_is_freed():
    """The GPU's path with a timer that takes no time."""
    import weakref

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


def test_which_backends_are_measured(monkeypatch):
    from bench import usable_backends

    from pecker_fast import backends

    assert usable_backends(["reference"], "cpu") == ["reference"]
    reasons = {"reference": None, "cpu": None, "triton": None, "cuda": "no nvcc"}
    monkeypatch.setattr(backends, "available", lambda: reasons)
    assert usable_backends(None, "cpu") == ["cpu"]
    assert usable_backends(None, "cuda") == ["triton"]
    reasons["cpu"] = "no compiler"
    assert usable_backends(None, "cpu") == ["reference"]


def test_the_cases_of_a_card_are_what_the_benchmarks_know():
    from gpu import CASES
    from inputs import PRESETS
    from networks import NETWORKS

    assert len(set(CASES)) == len(CASES)
    for case in CASES:
        assert case.preset in (PRESETS if case.benchmark in ("step_time", "topk") else NETWORKS)
