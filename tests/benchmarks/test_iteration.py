"""benchmarks/iteration.py: every variant agrees with the published loop, or gets no time."""

import re
from pathlib import Path

import pytest
import torch

from pecker_fast.nn import winograd

ROOT = Path(__file__).resolve().parents[2]
NEEDS_CUDA = ("trainer, fused blocks", "trainer, one CUDA graph")


def variant(name):
    from variants import VARIANTS

    return next(variant for variant in VARIANTS if variant.name == name)


def problem(preset="tiny", batch_size=2):
    from variants import Problem

    return Problem(preset, batch_size, 0.1, "cpu")


@pytest.fixture(scope="module")
def compared(_benchmarks_on_the_path):
    """A problem that remembers what the published loop makes of it."""
    return problem()


@pytest.mark.slow
def test_rows_are_checked_and_timed(run):
    from iteration import IterationCase

    names = ["as published", "trainer, one set of weights", "trainer, one CUDA graph"]
    code, result = run([IterationCase("tiny", 2)], "--provider", *names)
    assert code == 0
    rows = {row["provider"]: row for row in result["rows"]}
    assert rows.keys() == {*names}
    skipped = rows.pop("trainer, one CUDA graph")
    assert "p50_ms" not in skipped and skipped["match"] is None and "CUDA" in skipped["skipped"]
    for row in rows.values():
        assert row["match"] is True and row["p50_ms"] > 0 and row["setup_s"] >= 0
        assert row["run_hours"] == pytest.approx(row["p50_ms"] / 72)
        assert sum(row["kinds"].values()) == pytest.approx(1)
        assert row["kinds"]["convolution"] > 0 and row["kinds"]["optimizer"] > 0
        assert row["peak_bytes"] is None  # resident memory would say nothing about one variant


@pytest.mark.slow
def test_every_variant_agrees_with_the_published_loop(monkeypatch, compared):
    from variants import VARIANTS

    monkeypatch.setenv(winograd.SWITCH, "1")
    left_out = set(NEEDS_CUDA)
    if winograd.unavailable() is not None:  # an old processor
        left_out |= {each.name for each in VARIANTS if each.settings.get("accelerate")}
    for chosen in VARIANTS:
        assert (compared.obstacle(chosen) is not None) == (chosen.name in left_out)
        if chosen.name not in left_out:
            assert compared.check(chosen)[0], chosen.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainer, one set of weights", "trainer, bf16 weights"])
def test_prompts_and_guidance_agree_too(name):
    """Both loops call text-to-image networks alike: guidance on teacher and pseudo-score only."""
    match, errors = problem("tiny_text", 1).check(variant(name))
    assert match
    assert errors["loss_error"] > 0  # bits differ: two loops were compared


def test_the_gate_on_cuda_allows_for_cudnns_algorithms_alone():
    """fp32 alone is looser there, by far less than any other algorithm differs."""
    import variants

    on_cuda = variants.TOLERANCES_ON_CUDA
    assert {name for name, most in variants.TOLERANCES.items() if on_cuda[name] != most} == {"fp32"}
    assert on_cuda["fp32"] == (2e-4, 2e-4)
    with pytest.raises(ZeroDivisionError), variants._exact_fp32():
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.allow_tf32
        raise ZeroDivisionError
    assert not torch.backends.cudnn.deterministic and torch.backends.cudnn.allow_tf32


def other_alpha(objective, monkeypatch):
    config = objective.config.model_copy(update={"alpha": 1.3})
    monkeypatch.setattr(objective, "config", config)


def forget_is_kept(objective, monkeypatch):
    """The teacher is told the class to forget where it must be told the override."""
    draw = objective.conditions.draw

    def faulty(*arguments):
        labels = draw(*arguments)
        labels.teacher[:] = labels.student
        return labels

    monkeypatch.setattr(objective.conditions, "draw", faulty)


def less_noise(objective, monkeypatch):
    draw = objective.draw

    def faulty(*arguments):
        draws = draw(*arguments)
        draws.e[0] *= 1.01
        return draws

    monkeypatch.setattr(objective, "draw", faulty)


@pytest.mark.parametrize(
    "fault",
    [other_alpha, *(pytest.param(f, marks=pytest.mark.slow) for f in (forget_is_kept, less_noise))],
)
def test_another_algorithm_is_found_out(monkeypatch, compared, fault):
    import variants

    # The looser gate: what it finds out, the other does.
    monkeypatch.setattr(variants, "TOLERANCES", variants.TOLERANCES_ON_CUDA)
    trainer = variants.PeckerTrainer

    def faulty(objective, **options):
        fault(objective, monkeypatch)
        return trainer(objective, **options)

    monkeypatch.setattr(variants, "PeckerTrainer", faulty)
    assert not compared.check(variant("both of these: the trainer"))[0]


def test_one_frozen_entry_that_moves_is_found_out(monkeypatch, compared):
    """By one unit in the last place, after the run."""
    import iteration
    import variants

    class Leaky(variants.PeckerTrainer):
        def ema_generator(self):
            network = super().ema_generator()
            name, param = next(network.named_parameters())
            param = param.data.view(-1)
            frozen = ~self.mask.to_dense()[name].view(-1)
            first = int(frozen.nonzero()[0])
            param[first] = torch.nextafter(param[first], torch.tensor(9.0))
            return network

    monkeypatch.setattr(variants, "PeckerTrainer", Leaky)
    provider = iteration.build(compared, variant("both of these: the trainer"))
    assert provider.match is False and provider.columns["frozen_changed"] == 1


def test_the_published_loop_draws_what_the_method_asks_for():
    """Kept labels only, the override for the teacher, time steps in their range, fresh noise."""
    compared = problem(batch_size=64)
    loop, objective = compared._make(variant("as published"), {}, dropout=True)
    schedule = objective.schedule
    noises = []
    for remain, forget in next(loop._draw()):
        assert set(remain.label.tolist()) == set(range(1, 10))
        assert torch.equal(remain.label, remain.teacher_label)
        assert set(forget.label.tolist()) == {0} and set(forget.teacher_label.tolist()) == {1}
        for term in (remain, forget):
            assert schedule.t_min <= int(term.t.min()) <= int(term.t.max())
            assert int(term.t.max()) < schedule.t_max
            noises += [term.noise, term.e]
    assert len({float(noise.sum()) for noise in noises}) == 8


def test_every_kernel_of_an_iteration_has_a_kind():
    from profile_kinds import kind_of

    expected = {
        "adamw": {"optimizer"}, "advance": {"optimizer"}, "salient": {"optimizer"},
        "group_norm": {"normalisation"}, "group_norm_backward": {"normalisation"},
        "channels_last": {"normalisation", "reduction"}, "residual": {"elementwise"},
    }  # fmt: skip
    for file, kinds in expected.items():
        text = (ROOT / "kernels" / f"{file}.py").read_text()
        names = re.findall(r"^def (_\w+_kernel)\(", text, flags=re.M)
        assert {kind_of(name) for name in names} == kinds, names
