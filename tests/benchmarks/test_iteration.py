"""Variants of an iteration agree with the published loop, and its memory is counted right."""

import pytest
import torch

from pecker_fast.nn import winograd
from pecker_fast.runs.live_memory import OTHER, LiveMemory

TRAINER = "both of these: the trainer"


def variant(name):
    from variants import variants

    return next(each for each in variants("cpu") if each.name == name)


@pytest.fixture(scope="module")
def compared(_benchmarks_on_the_path):
    """A problem that remembers what the published loop makes of it."""
    from variants import Problem

    return Problem("tiny", 2, 0.1, "cpu")


@pytest.mark.slow
def test_rows_are_checked_and_timed(run):
    from iteration import IterationCase

    names = ["as published", "trainer, one set of weights"]
    code, result = run([IterationCase("tiny", 2)], "--provider", *names)
    assert code == 0 and [row["provider"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert row["match"] is True and row["p50_ms"] > 0 and row["peak_bytes"] is None


@pytest.mark.slow
def test_every_variant_agrees_with_the_published_loop(monkeypatch, compared):
    from variants import variants

    monkeypatch.setenv(winograd.SWITCH, "1")
    names = {each.name for each in variants("cuda")} - {each.name for each in variants("cpu")}
    assert names == {"trainer, fused blocks", "trainer, one CUDA graph"}
    for chosen in variants("cpu"):
        if not chosen.settings.get("accelerate") or winograd.unavailable() is None:
            assert compared.check(chosen)[0], chosen.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainer, one set of weights", "trainer, bf16 weights"])
def test_prompts_and_guidance_agree_too(name):
    """Both loops call text-to-image networks alike: guidance on teacher and pseudo-score only."""
    from variants import Problem

    match, errors = Problem("tiny_text", 1, 0.1, "cpu").check(variant(name))
    assert match and errors["loss_error"] > 0  # bits differ: two loops were compared


def other_alpha(objective):
    objective.config = objective.config.model_copy(update={"alpha": 1.3})


def forget_is_kept(objective):
    """The teacher is told the class to forget where it must be told the override."""
    draw = objective.conditions.draw

    def faulty(*arguments):
        labels = draw(*arguments)
        labels.teacher[:] = labels.student
        return labels

    objective.conditions.draw = faulty


def less_noise(objective):
    draw = objective.draw

    def faulty(*arguments):
        draws = draw(*arguments)
        draws.e[0] *= 1.01
        return draws

    objective.draw = faulty


@pytest.mark.parametrize(
    "fault",
    [other_alpha, *(pytest.param(f, marks=pytest.mark.slow) for f in (forget_is_kept, less_noise))],
)
def test_another_algorithm_is_found_out(monkeypatch, compared, fault):
    import variants

    trainer = variants.PeckerTrainer

    def faulty(objective, **options):
        fault(objective)
        return trainer(objective, **options)

    monkeypatch.setattr(variants, "PeckerTrainer", faulty)
    assert not compared.check(variant(TRAINER))[0]


def test_one_frozen_entry_that_moves_is_found_out(monkeypatch, compared):
    """By one unit in the last place, after the run."""
    import iteration
    import variants

    class Leaky(variants.PeckerTrainer):
        def ema_generator(self):
            network = super().ema_generator()
            name, param = next(network.named_parameters())
            param = param.data.view(-1)
            first = int((~self.mask.to_dense()[name].view(-1)).nonzero()[0])
            param[first] = torch.nextafter(param[first], torch.tensor(9.0))
            return network

    monkeypatch.setattr(variants, "PeckerTrainer", Leaky)
    provider = iteration.build(compared, variant(TRAINER))
    assert provider.match is False and provider.columns["frozen_changed"] == 1


def test_what_is_alive():
    def mebibytes(count):
        return torch.zeros(count * 2**20, dtype=torch.uint8)

    def alive(memory):
        return {kind: size / 2**20 for kind, size in memory.live_bytes.items()}

    before = mebibytes(3)
    with LiveMemory() as memory:
        memory.label([before, before[:5]], "kept")
        first = mebibytes(4)
        view, chunks = first[:10], first.chunk(2)
        second = mebibytes(2)
        assert alive(memory) == {"kept": 3, OTHER: 6}
        memory.label([second], "kept")
        assert alive(memory) == {"kept": 5, OTHER: 4}
        del first, view
        assert alive(memory)[OTHER] == 4  # the chunks hold it
        del chunks
        third = mebibytes(3)
        assert alive(memory) == {"kept": 5, OTHER: 3}
        third.add_(1)  # in place: nothing new
    assert memory.peak_bytes == 9 * 2**20
    assert memory.at_peak == {"kept": 3 * 2**20, OTHER: 6 * 2**20}


@pytest.mark.slow
def test_what_stays_between_iterations_is_computed(capsys, compared):
    """N entries in T tensors, about a tenth salient, one moment each: 3 networks, then one."""
    import memory

    shapes = [param.shape for param in compared.teacher.parameters()]
    numel, steps = sum(shape.numel() for shape in shapes), 8 * len(shapes)
    nnz = sum(max(1, round(0.1 * shape.numel())) for shape in shapes)
    common = {"positions of the mask": 4 * nnz, "weight average": 4 * nnz}
    for layout, expected in (
        ("three networks, fp32", {"weights": 12 * numel, "optimizer state": 4 * (numel + nnz)}),
        ("one set of weights, bf16", {"weights": 2 * numel, "optimizer state": 8 * nnz}),
    ):
        parts = memory.compute("tiny", 2, 0.1, layout)
        expected["optimizer state"] += steps
        assert {kind: parts[kind] for kind in (*expected, *common)} == {**expected, **common}
    assert memory.main(["--preset", "tiny"]) == 0
    assert capsys.readouterr().out.count("GiB") == len(memory.LAYOUTS) - 1
