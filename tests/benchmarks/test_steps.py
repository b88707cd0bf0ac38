"""Optimizer step and top-k: wrong results are found out, and inputs are what they say."""

import math

import pytest
import torch

from pecker_fast import backends

NUMEL = 100_498  # of the preset "tiny"
# Parameters and tensors.
SIZES = {
    "tiny": (NUMEL, 6),
    "ddpm_cifar10": (35_751_939, 329),
    "ddpm_stl10": (78_706_435, 391),
    "sd15": (859_520_964, 686),
    "sdxl": (2_567_463_684, 1_680),
}


def test_every_preset_has_its_size():
    from gpu import CASES
    from inputs import PRESETS, shapes
    from networks import NETWORKS

    for preset in PRESETS:
        found = shapes(preset)
        assert (sum(map(math.prod, found.values())), len(found)) == SIZES[preset]
    for case in CASES:
        assert case.preset in (NETWORKS if case.benchmark == "iteration" else PRESETS)


@pytest.mark.parametrize("preset", ["sd15", "sdxl"])
def test_the_files_are_what_diffusers_makes(preset):
    pytest.importorskip("diffusers")
    from inputs import shapes
    from networks import NETWORKS

    with torch.device("meta"):  # no weights, no memory, no download
        network = NETWORKS[preset].make()
    made = {name: param.shape for name, param in network.named_parameters()}
    assert list(made.items()) == list(shapes(preset).items())


@pytest.mark.parametrize(
    ("dtype", "masked", "beta1", "lines", "entries"),
    [
        # 16 floats a line: the first and the last of three lines.
        (torch.float32, True, 0.9, 2, 4 * (4 + 16)),
        (torch.float32, True, 0.0, 2, 4 * (4 + 8)),
        (torch.float32, False, 0.9, 3, 40 * 16),
        # 32 to a line, and a master of 4 bytes under a mask.
        (torch.bfloat16, True, 0.9, 2, 4 * (4 + 16 + 8)),
        (torch.float16, False, 0.9, 2, 40 * 16),
    ],
    ids=str,
)
def test_floor(dtype, masked, beta1, lines, entries):
    """40 entries; 1, 2, 9 and 35 are salient; and the state that there is, read and written."""
    from inputs import StepInput, bytes_floor
    from providers import ours

    param = torch.nn.Parameter(torch.zeros(40, dtype=dtype))
    param.grad = torch.ones_like(param)
    mask = torch.zeros(40, dtype=torch.bool)
    mask[[1, 2, 9, 35]] = True
    made = StepInput({"p": param}, {"p": mask} if masked else None, dtype, beta1)
    assert bytes_floor(made) == 3 * 64 * lines + entries
    if masked:
        (state,) = ours(made, "reference").state.values()
        values = sum(4 * t.numel() for key, t in state.items() if key != "step")
        assert entries == 4 * 4 + 2 * values


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
def test_masks_have_their_density_and_heavy_ones_touch_fewer_lines(density):
    from inputs import bytes_floor, make_input

    made = {m: make_input("tiny", torch.float32, m, density, "cpu") for m in ("random", "heavy")}
    for kind, spread in (("random", 5 * (density * (1 - density) * NUMEL) ** 0.5), ("heavy", 0.5)):
        found = sum(int(mask.sum()) for mask in made[kind].masks.values())
        assert abs(found - density * NUMEL) <= spread
    assert bytes_floor(made["heavy"]) < bytes_floor(made["random"])


def test_rows_of_a_step_are_gated_and_have_their_shares(run):
    from step_time import StepCase

    code, result = run([StepCase("tiny", "random", 0.5)])
    assert code == 0
    rows = {row["provider"]: row for row in result["rows"]}
    ours = rows["pecker_fast[reference]"]
    assert len(rows) == 4
    assert ours["match"] is rows["gradmask_fused_restore"]["match"] is True
    assert rows["torch_fused"]["match"] is None
    share = ours["bytes_moved"] / 20e9 * 1e3 / ours["p50_ms"]
    assert ours["roof_share"] == pytest.approx(share)
    assert rows["torch_fused"]["bytes_moved"] == 28 * NUMEL
    assert rows["gradmask_fused"]["bytes_moved"] == 37 * NUMEL
    assert ours["state_bytes"] < 0.6 * rows["torch_fused"]["state_bytes"]


@pytest.mark.parametrize("where", ["nowhere", "frozen", "salient", "state", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_step_is_found_out(monkeypatch, where, dtype):
    """A frozen entry that moves by one unit in the last place; an update or a moment 1 % off;
    the first gradients used again."""
    import providers
    from inputs import make_input

    made = make_input("tiny", dtype, "random", 0.5, "cpu")
    honest = providers.ours

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
    assert providers.checked_ours(made, "reference").match is (where == "nowhere")


def test_every_selection_passes_the_gate(run):
    from topk import TopkCase

    code, result = run([TopkCase("tiny")], "--backend", "cpu")
    assert code == 0
    names = ["torch.topk", "salun_double_argsort", "torch.sort", "pecker_fast[cpu]"]
    assert [row["provider"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert row["match"] is True and row["bytes_moved"] == 4 * NUMEL + 4 * 10_050


@pytest.mark.parametrize("k", [1, 7, 40, 99, 100])
def test_a_wrong_selection_is_found_out(k):
    """With many ties, which baselines may choose among, infinities and zeros of both signs."""
    import topk

    values = torch.tensor([0.0, -0.0, 1.0, 2.0, 2.0, -1.0, float("inf")])
    scores = [values[torch.randint(7, (n,))] for n in (1, 39, 60)]
    select = backends.select("reference", "cpu").select_topk
    assert topk.build(select, topk.of_positions, scores, k).match is True
    for baseline, dense in topk._BASELINES.values():
        assert topk.build(baseline, dense, scores, k, ties=True).match is True
        fewer = lambda scores, k, baseline=baseline: baseline(scores, k - 1)  # noqa: E731
        assert topk.build(fewer, dense, scores, k, ties=True).match is False


def test_host_time_is_measured_without_launches():
    if "cuda" not in backends.on_host():
        pytest.skip("the CUDA kernels do not run on the CPU here")
    import host_time

    kernels = backends.select("cuda", "cpu").kernels
    module = kernels._module
    assert len(host_time.step_seconds(5, steps=13)) == 3
    assert kernels._module is module
