"""benchmarks/step_time.py: a wrong step is found out, and the figures are what they say."""

import pytest
import torch

NUMEL = 100_498  # of the preset "tiny"


def make_input(mask="random", dtype=torch.float32, density=0.5):
    from inputs import make_input

    return make_input("tiny", dtype, mask, density, "cpu")


def test_every_row_is_gated_and_has_its_ratios(run):
    from rows import speed_up
    from step_time import StepCase

    case = StepCase("tiny", "random", 0.5)
    code, result = run([case])
    assert code == 0
    rows = {row["provider"]: row for row in result["rows"]}
    ours = rows["pecker_fast[reference]"]
    assert rows.keys() - {ours["provider"]} == {*case.baselines}
    assert ours["match"] is rows["gradmask_fused_restore"]["match"] is True
    assert rows["torch_fused"]["match"] is None
    restore = rows["gradmask_fused_restore"]["p50_ms"]
    assert speed_up(ours, rows.values(), "gradmask_fused_restore") == restore / ours["p50_ms"]
    assert ours["floor_ms"] == pytest.approx(ours["floor_bytes"] / 20e9 * 1e3)
    assert ours["floor_share"] == pytest.approx(ours["floor_ms"] / ours["p50_ms"])
    assert ours["roof_share"] == pytest.approx(ours["floor_share"])
    assert rows["torch_fused"]["bytes_moved"] == 28 * NUMEL
    assert rows["gradmask_fused"]["bytes_moved"] == 37 * NUMEL
    assert ours["state_bytes"] < 0.6 * rows["torch_fused"]["state_bytes"]


@pytest.mark.slow
def test_the_compiled_step_is_gated_too(run):
    from step_time import CompiledCase

    code, result = run([CompiledCase("tiny", "random", 0.5)])
    assert code == 0
    rows = {row["provider"]: row["match"] for row in result["rows"]}
    assert rows == {"eager": True, "compiled": True, "compiled, without work": None}


def test_the_command(capsys):
    import step_time

    options = "--preset tiny --dtype float32 bfloat16 --masks heavy --densities 0.1 --list"
    assert step_time.main(options.split()) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"step_time tiny mask={mask} density={density} dtype={dtype} beta1=0.9"
        for dtype in ("float32", "bfloat16")
        for mask, density in (("none", 1.0), ("heavy", 0.1))
    ]


@pytest.mark.parametrize("where", ["frozen", "salient", "state", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_step_is_found_out(monkeypatch, where, dtype):
    """A frozen entry that moves by one unit in the last place; an update or a moment 1 % off;
    the first gradients used again."""
    import providers

    made = make_input(dtype=dtype)
    honest = providers.ours
    assert providers.checked_ours(make_input(dtype=dtype), "reference").match is True

    def faulty(made, backend):
        optimizer = honest(made, backend)
        first = made.params["odd"].grad.clone()

        def forget(*_):
            if where == "gradient":
                made.params["odd"].grad.copy_(first)

        def disturb(*_):
            param, mask = made.params["odd"], made.masks["odd"]
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
    assert providers.checked_ours(made, "reference").match is False


def test_gradients_are_new_tensors_at_every_call_on_a_gpu():
    from providers import checked_ours

    made = make_input()
    provider = checked_ours(made, "reference")
    before = [param.grad for param in made.params.values()]
    provider.prepare()
    after = [param.grad for param in made.params.values()]
    assert all(a is not b and torch.equal(a, b) for a, b in zip(after, before, strict=True))
