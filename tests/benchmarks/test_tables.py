"""Tables: what the result files say and no more, wherever a page has a place for them."""

import json

import pytest

GIB = 2**30
HEAD = {"benchmark": "step_time", "preset": "sd15", "dtype": "float32", "beta1": 0.9}
OTHER = "activations and temporaries"


def place(name, inside=""):
    return f"<!-- table: {name} -->\n{inside}<!-- end -->"


def step_row(provider, ms, mask="heavy", layout="model", **more):
    return {
        **HEAD, "mask": mask, "density": 1.0 if mask == "none" else 0.1, "layout": layout,
        "provider": provider, "match": True if "pecker" in provider else None, "p50_ms": ms,
        "host_us": 150.0, "floor_share": 0.95, **more,
    }  # fmt: skip


def topk_row(provider, ms, **more):
    return {
        "benchmark": "topk", "preset": "sd15", "numel": 859_520_964, "scores": "heavy",
        "density": 0.1, "provider": provider, "match": True, "p50_ms": ms, "min_ms": ms,
        "floor_share": 1.14 / ms, "peak_extra_bytes": 400 * 2**20,
        "extra_bytes_without_result": 72 * 2**20, **more,
    }  # fmt: skip


def time_row(preset, variant, ms, **more):
    """A row as iteration.py writes it; ms None: not run here."""
    row = {"benchmark": "iteration", "preset": preset, "batch_size": 128, "density": 0.1}
    if ms is not None:
        kinds = {"copy": 0.1, "convolution": 0.6, "other": 0.0}
        row |= {"p50_ms": ms, "run_hours": ms / 72, "setup_s": 4.0, "peak_bytes": 5 * GIB}
        row |= {"optimizer_share": 0.031, "kinds": kinds, "match": True}
    return {"match": None, **row, "provider": variant, **more}


def memory_row(preset, layout, computed, measured=None):
    row = {"benchmark": "memory", "preset": preset, "batch_size": 1, "density": 0.1}
    row |= {"provider": layout, "match": None, "parts": {"weights": GIB, OTHER: 3 * GIB}}
    if computed is not None:
        row["computed_peak_bytes"] = computed * GIB
    return row | ({} if measured is None else {"measured_peak_bytes": measured * GIB})


@pytest.fixture
def render(tmp_path, monkeypatch):
    """The tables of these names for a project with one result file."""
    import tables

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    machine = {"device": "H100", "torch": "2.11", "cuda": "13.0", "triton": "3.6.0",
               "driver": "580", "commit": "abc", "copy_gb_per_s": 3029.0}  # fmt: skip

    def render(rows, name, file="h100", complete=True):
        result = {"machine": machine, "complete": complete, "failures": [], "rows": rows}
        (tmp_path / f"{file}.json").write_text(json.dumps(result))
        return tables.render(f"a\n{place(name, 'old' + chr(10))}\nb\n")

    return render


def test_pages_keep_everything_else(tmp_path, monkeypatch):
    import tables

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name in ("demo", "step_time_gpu"):  # without a result file
        assert tables.render(f"a\n{place(name, 'old' + chr(10))}\nb") == f"a\n{place(name)}\nb"
    assert tables.render("no place at all") == "no place at all"
    with pytest.raises(SystemExit, match="no_such_table"):
        tables.render(place("no_such_table"))


def test_every_page_of_the_project_is_as_its_files_say():
    import tables

    for page in (tables.ROOT / "README.md", *tables.ROOT.glob("docs/*.md")):
        text = page.read_text()
        assert tables.render(text) == text


def test_a_row_that_failed_its_gate_stops_it(render):
    wrong = {**step_row("pecker_fast[cuda]", None), "match": False}
    for name in ("step_time_gpu", "topk_gpu"):
        with pytest.raises(SystemExit, match="failed its gate"):
            render([wrong], name)


def test_the_faster_backend_gives_the_ratios(render):
    rows = [
        step_row("pecker_fast[cuda]", 1.4),
        step_row("pecker_fast[triton]", 1.5),
        step_row("torch_fused", 8.96),
        step_row("gradmask_fused", 15.4),
        step_row("pecker_fast[cuda]", 9.0, "none"),
        step_row("torch_fused", 9.09, "none"),
        step_row("pecker_fast[cuda]", 1.25, layout="one tensor"),
    ]
    text = render(rows, "step_time_gpu")
    assert text.startswith("a\n<!-- table") and text.endswith("<!-- end -->\nb\n")
    assert "| SD 1.5, fp32 | no mask | 9.000 | - | 95% | 1.01 x | - | - | 150 |" in text
    heavy = "1.400 | 1.500 | 95% | 6.4 x | 11.0 x | - | 150 |"
    assert f"| SD 1.5, fp32 | heavy, density 0.1 | {heavy}" in text
    assert "SD 1.5, fp32: 1.12 times the time of the same step in one tensor." in text
    assert "H100, torch 2.11, CUDA 13.0, Triton 3.6.0, driver 580, commit abc." in text
    assert "Not every case" not in text and "1.250" not in text
    assert "Not every case was measured." in render(rows, "step_time_gpu", complete=False)


def test_topk_of_a_card(render):
    rows = [topk_row("torch.topk", 18.8, ties=True), topk_row("pecker_fast[cuda]", 2.0)]
    rows.append(topk_row("torch.sort", 1.0, numel=5))  # of a smaller network
    text = render(rows, "topk_gpu")
    assert "| top 10 % of 859.52 M scores |" in text
    assert "| pecker_fast[cuda] | 2.00 | 1.0 x | 57% | 400 MiB | 72 MiB |" in text
    assert "| `torch.topk` of the concatenation | 18.80 | 9.4 x |" in text
    assert "stable sort" not in text


def test_iterations(render):
    rows = [
        time_row("ddpm_cifar10", "as published", 600.0),
        time_row("ddpm_cifar10", "one CUDA graph", None),
        time_row("ddpm_cifar10", "all", 99.96),
        time_row("sd15", "as published", None),
        time_row("demo", "as published", 1000.0),
    ]
    text = render(rows, "iteration_gpu")
    assert "| ms per iteration (times faster) | CIFAR-10 DDPM, batch 128 | the demo's" in text
    assert "| as published | 600 (1.00 x) | 1,000 (1.00 x) |" in text
    assert "| all | 100.0 (6.00 x) | - |" in text
    assert "one CUDA graph" not in text and "SD 1.5" not in text  # without a figure
    assert (
        "CIFAR-10 DDPM, batch 128, fastest line: 1.4 h for 50,000 iterations, 5.0 GiB at the peak, "
        "3.1% of it optimizers, set-up 4 s; convolution 60%, copy 10%, other 0%. "
    ) in text


def test_hours_of_a_run_are_projected_from_a_smaller_batch(render):
    row = time_row("cifar10", "all", 720.0, batch_size=2, published_batch=128)
    text = render([row], "published_runs", file="published_runs-cpu")
    assert "fastest line: 640.0 h for 50,000 iterations of batch 128, projected from this" in text


def test_memory(render):
    rows = [
        memory_row("sd15", "as published", 39, 33),
        memory_row("sd15", "one set", 8),
        memory_row("sd15", "fused blocks", None, 7),
        memory_row("sdxl", "one set", 22),
    ]
    text = render(rows, "memory", file="memory-cpu")
    assert "| peak of an iteration | SD 1.5, batch 1 | SDXL, batch 1 |" in text
    assert "| as published | 39.0 GiB, measured 33.0 GiB | - |" in text
    assert "| one set | 8.0 GiB | 22.0 GiB |" in text
    assert "| fused blocks | measured 7.0 GiB | - |" in text
    assert f"SD 1.5, batch 1, one set: {OTHER} 3.0 GiB, weights 1.0 GiB. " in text


def test_what_gpu_py_writes_can_be_rendered(run, monkeypatch, tmp_path):
    import tables
    from step_time import StepCase
    from topk import TopkCase

    cases = [StepCase("tiny"), StepCase("tiny", layout="one tensor"), TopkCase("tiny")]
    assert run(cases)[0] == 0
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| tiny, fp32 | heavy, density 0.1 |" in tables.render(place("step_time_gpu"))
    assert "| top 10 % of 0.10 M scores |" in tables.render(place("topk_gpu"))
