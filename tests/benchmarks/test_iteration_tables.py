"""Tables of the iteration and of its memory: there where there are figures, and nowhere else."""

import json
from dataclasses import asdict

import pytest

GIB = 2**30
PLACES = "".join(
    f"<!-- table: {name} -->\n<!-- end -->\n"
    for name in ("iteration", "memory", "iteration_gpu", "memory_gpu")
)
MACHINE = {"device": "H100", "torch": "2.11", "cuda": "13.0", "triton": "3.6.0", "commit": "abc"}


def time_row(preset, variant, ms, published_ms=600.0, **more):
    """A row as iteration.py writes it; ms None: not run here."""
    from iteration import Row

    row = Row(preset, 128, 128, 0.1, variant, "fp32", {}, match=None if ms is None else True)
    if ms is not None:
        row.p50_ms, row.vs_published = ms, published_ms / ms
        row.run_hours, row.setup_s, row.peak_bytes = ms / 72, 4.0, 5 * GIB
        row.optimizer_share, row.kinds = 0.031, {"copy": 0.1, "convolution": 0.6, "other": 0.0}
    return {"benchmark": "iteration", **asdict(row), **more}


def memory_row(preset, layout, computed, measured=None):
    """A row as memory.py writes it, in GiB."""
    from memory import Row

    row = Row(preset, 1, 0.1, layout, "bf16", {}, parts={"weights": GIB, OTHER: 3 * GIB})
    row.computed_peak_bytes = None if computed is None else computed * GIB
    row.measured_peak_bytes = None if measured is None else measured * GIB
    return {"benchmark": "memory", **asdict(row)}


OTHER = "activations and temporaries"


@pytest.fixture
def render(tmp_path, monkeypatch):
    """The README of a project with these result files: name -> rows."""
    import tables

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "TABLES", {})

    def render(files, text=PLACES):
        for name, rows in files.items():
            result = {"machine": MACHINE, "complete": True, "failures": [], "rows": rows}
            (tmp_path / f"{name}.json").write_text(json.dumps(result))
        return tables.render(text)

    return render


def test_nothing_without_a_result_file(render):
    assert render({}) == PLACES
    assert render({"h100": []}) == PLACES
    assert render({}, "no place at all") == "no place at all"


def test_times(render):
    rows = [
        time_row("ddpm_cifar10", "as published", 600.0),
        time_row("ddpm_cifar10", "one CUDA graph", None, skipped="a CUDA graph needs CUDA"),
        time_row("ddpm_cifar10", "all", 99.96),
        time_row("sd15", "as published", None, skipped="CUDA out of memory"),
        time_row("demo", "as published", 1000.0, 1000.0),
    ]
    text = render({"h100": rows})
    assert "| ms per iteration (times faster) | CIFAR-10 DDPM, batch 128 | the demo's" in text
    assert "| as published | 600 (1.00 x) | 1,000 (1.00 x) |" in text
    assert "| all | 100.0 (6.00 x) | - |" in text
    assert "one CUDA graph" not in text  # a line without a figure
    assert "SD 1.5" not in text  # a network without a figure
    assert (
        "CIFAR-10 DDPM, batch 128, fastest line: 1.4 h for 50,000 iterations, 5.0 GiB at the peak, "
        "3.1% of it optimizers, set-up 4 s; convolution 60%, copy 10%, other 0%. "
    ) in text
    assert "H100, torch 2.11, CUDA 13.0, Triton 3.6.0, commit abc." in text


def test_hours_of_a_run_are_projected_from_a_smaller_batch(render):
    row = time_row("cifar10", "all", 720.0, batch_size=2)
    text = render({"published_runs-cpu": [row]}, "<!-- table: published_runs -->\n<!-- end -->\n")
    assert "CIFAR-10 as published, batch 2" in text
    assert "fastest line: 640.0 h for 50,000 iterations of batch 128, projected from this" in text


def test_a_row_that_failed_its_gate_stops_it(render):
    with pytest.raises(AssertionError, match="failed its gate"):
        render({"iteration-cpu": [time_row("demo", "all", 9.0, match=False)]})


def test_memory(render):
    rows = [
        memory_row("sd15", "as published", 39, 33),
        memory_row("sd15", "one set", 8),
        memory_row("sd15", "fused blocks", None, 7),
        memory_row("sdxl", "one set", 22),
    ]
    text = render({"memory-cpu": rows})
    assert "| peak of an iteration | SD 1.5, batch 1 | SDXL, batch 1 |" in text
    assert "| as published | 39.0 GiB, measured 33.0 GiB | - |" in text
    assert "| one set | 8.0 GiB | 22.0 GiB |" in text
    assert "| fused blocks | measured 7.0 GiB | - |" in text
    assert f"SD 1.5, batch 1, one set: {OTHER} 3.0 GiB, weights 1.0 GiB. " in text
    assert text.count("peak of an iteration") == 1  # the CPU's file is no card


def test_what_gpu_py_writes_can_be_rendered(render, tmp_path, monkeypatch):
    import gpu
    import iteration
    import memory
    import step_time
    from variants import VARIANTS

    figures = {"copy_gb_per_s": 10.0, "in_place_gb_per_s": 20.0, "roof_gb_per_s": 20.0}
    monkeypatch.setattr(step_time, "bandwidth", lambda timer, device: figures)
    monkeypatch.setattr(gpu, "VARIANTS", VARIANTS[:1])
    monkeypatch.setattr(iteration, "shares", lambda *_: {"copy": 1.0})  # takes a second
    name = "one set, bf16, released, one image"
    layouts = [layout for layout in memory.LAYOUTS if layout.name == name]
    monkeypatch.setattr(memory.rows_of, "__defaults__", (layouts,))
    cases = [gpu.IterationCase("tiny", 1), gpu.MemoryCase("tiny")]
    options = ["--device", "cpu", "--repeats", "1", "--json", str(tmp_path / "card.json")]
    assert gpu.main(options, cases) == 0
    text = render({})
    assert "| as published | " in text and "(1.00 x) |" in text
    assert f"| {name} | 0.0 GiB |" in text


def test_a_graph_that_was_not_captured_has_no_time():
    import iteration
    from variants import VARIANTS

    graph = next(variant for variant in VARIANTS if variant.settings.get("graph") == "auto")
    assert iteration._no_graph(graph, ["x", "one CUDA graph per iteration"]) is None
    assert iteration._no_graph(graph, ["x", "cannot be captured"]) == "x; cannot be captured"
    assert iteration._no_graph(VARIANTS[0], []) is None
