"""benchmarks/step_time.py runs, writes its rows, and gives no time to a wrong result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BANDWIDTH = {"copy_gb_per_s": 10.0, "in_place_gb_per_s": 20.0, "roof_gb_per_s": 20.0}


@pytest.fixture
def step_time(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step_time

    # The figures are not looked at here; the tensors of the real one take a second.
    monkeypatch.setattr(step_time, "bandwidth", lambda timer, device: dict(BANDWIDTH))
    return step_time


def make_case(mask="random", density=0.5, dtype=torch.float32, beta1=0.9):
    from inputs import make_case

    return make_case("tiny", dtype, mask, density, "cpu", beta1)


def setup(step_time, *backends, timer=None):
    return step_time.Setup("cpu", backends or ("reference",), 2, 20.0, timer)


def test_every_row_is_gated_and_written(step_time, tmp_path, capsys):
    file = tmp_path / "rows.json"
    arguments = ["--preset", "tiny", "--densities", "0.1", "--repeats", "2", "--json", str(file)]
    assert step_time.main(arguments) == 0
    written = json.loads(file.read_text())
    ours = [row for row in written["rows"] if row["provider"].startswith("pecker_fast")]
    assert [row["mask"] for row in ours] == ["none", "random", "heavy"]
    assert all(row["match"] is True and row["p50_ms"] > 0 for row in ours)
    assert {"device", "torch", "commit", "copy_gb_per_s"} <= written["machine"].keys()
    masked = {row["provider"] for row in written["rows"] if row["mask"] == "heavy"}
    assert masked - {ours[0]["provider"]} == {
        "torch_fused", "torch_foreach", "gradmask_fused", "gradmask_int64_fused",
        "gradmask_foreach_fused", "gradmask_fused_restore",
    }  # fmt: skip
    assert "x gradmask" in capsys.readouterr().out


def test_several_presets_dtypes_and_backends(step_time, tmp_path):
    file = tmp_path / "rows.json"
    arguments = "--preset tiny tiny --dtype float32 bfloat16 float16 --masks heavy".split()
    arguments += "--densities 0.1 --repeats 1 --backend reference".split()
    assert step_time.main([*arguments, "--json", str(file)]) == 0
    ours = [r for r in json.loads(file.read_text())["rows"] if r["match"] and r["vs_gradmask"]]
    ours = [row["dtype"] for row in ours if row["provider"] == "pecker_fast[reference]"]
    assert ours == 2 * ["float32", "bfloat16", "float16"]


def test_a_backend_that_is_not_there_is_one_line(step_time, capsys):
    assert step_time.main(["--backend", "quantum"]) == 2
    assert "backend 'quantum' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["frozen", "salient", "state", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_result_gets_no_time(step_time, monkeypatch, where, dtype):
    """A frozen entry that moves by one unit in the last place; an update or a moment 1 % off;
    the first gradients used again."""
    import providers

    case = make_case(dtype=dtype)
    honest = providers.ours

    def faulty(case, backend):
        optimizer = honest(case, backend)
        first = case.params["odd"].grad.clone()

        def forget(*_):
            if where == "gradient":
                case.params["odd"].grad.copy_(first)

        def disturb(*_):
            param, mask = case.params["odd"], case.masks["odd"]
            if where == "frozen":
                bits = param.data.view(torch.int32 if dtype == torch.float32 else torch.int16)
                bits[tuple((~mask).nonzero()[0])] += 1
            elif where == "salient":
                param.data[tuple(mask.nonzero()[0])] *= 1.01
            elif where == "state":
                optimizer.state[param]["exp_avg_sq"][0] *= 1.01

        optimizer.register_step_pre_hook(forget)
        optimizer.register_step_post_hook(disturb)
        return optimizer

    monkeypatch.setattr(providers, "ours", faulty)
    rows = step_time.run_case(setup(step_time), case)
    assert [row.match for row in rows if row.provider == "pecker_fast[reference]"] == [False]
    assert (rows[0].p50_ms, rows[0].skipped) == (None, "its result is wrong")
    assert all(row.p50_ms for row in rows[1:])


def test_ratios_of_a_row(step_time):
    rows = step_time.run_case(setup(step_time), make_case(), with_one_tensor=True)
    by_name = {row.provider: row for row in rows if row.layout == "model"}
    ours, single = by_name["pecker_fast[reference]"], rows[-1]
    assert (single.layout, single.provider, single.match) == ("one tensor", ours.provider, True)
    assert ours.times_one_tensor == ours.p50_ms / single.p50_ms
    assert ours.vs_restore == by_name["gradmask_fused_restore"].p50_ms / ours.p50_ms
    assert by_name["gradmask_fused_restore"].match is True
    assert by_name["torch_fused"].match is None
    assert ours.floor_ms == pytest.approx(ours.floor_bytes / 20e9 * 1e3)
    assert ours.floor_share == pytest.approx(ours.floor_ms / ours.p50_ms)
    assert ours.roof_share == pytest.approx(ours.floor_share)
    assert by_name["torch_fused"].bytes_moved == 28 * 100_498
    assert by_name["gradmask_fused"].bytes_moved == 37 * 100_498
    assert by_name["gradmask_int64_fused"].mask_bytes == 8 * 100_498
    assert by_name["gradmask_fused_restore"].mask_bytes == 5 * 100_498


def test_what_does_not_fit_in_memory_is_skipped_with_the_reason(step_time, monkeypatch):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 1.")

    monkeypatch.setattr(step_time, "baselines", lambda case: {"torch_fused": full})
    rows = step_time.run_case(setup(step_time), make_case())
    assert rows[1].skipped == "CUDA out of memory. Tried to allocate 9 GiB"
    assert rows[1].p50_ms is None and rows[0].p50_ms and rows[0].vs_torch_fused is None


def test_on_a_gpu_one_follows_the_other_with_new_gradients(step_time, monkeypatch):
    """The GPU's path with a timer that takes no time: what it calls, and that all is freed."""
    from timing import Timing

    class Timer:
        def measure(self, call, repeats, prepare):
            before = [param.grad for param in case.params.values()]
            prepare()
            after = [param.grad for param in case.params.values()]
            assert all(a is not b and torch.equal(a, b) for a, b in zip(after, before, strict=True))
            call()
            return Timing([1.0] * repeats, host_us=5.0, wall_ms=2.0)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    case = make_case()
    rows = step_time.run_case(setup(step_time, timer=Timer()), case)
    assert {(row.p50_ms, row.host_us, row.wall_ms) for row in rows} == {(1.0, 5.0, 2.0)}
    assert [row.provider for row in rows][:2] == ["pecker_fast[reference]", "torch_foreach"]


def test_which_backends_are_measured(step_time, monkeypatch):
    from providers import usable_backends

    from pecker_fast import backends

    assert usable_backends(["reference"], "cpu") == ["reference"]
    reasons = {"reference": None, "cpu": None, "triton": None, "cuda": "no nvcc"}
    monkeypatch.setattr(backends, "available", lambda: reasons)
    assert usable_backends(None, "cpu") == ["cpu"]
    assert usable_backends(None, "cuda") == ["triton"]
    reasons["cpu"] = "no compiler"
    assert usable_backends(None, "cpu") == ["reference"]


def test_the_cifar10_preset_is_the_published_network(step_time):
    from presets import shapes

    assert sum(shape.numel() for shape in shapes("ddpm_cifar10").values()) == 35_751_939
