"""Tables: what the result files say and no more, wherever a page has a place for them."""

import json

import pytest

GIB = 2**30
MACHINE = {"device": "H100", "torch": "2.11", "cuda": "13.0", "driver": "580", "commit": "abc"}
HEAD = {
    "step_time": {"dtype": "float32", "beta1": 0.9, "mask": "heavy", "host_us": 150.0},
    "topk": {"scores": "heavy", "numel": 859_520_964, "peak_extra_bytes": 400 * 2**20},
    "iteration": {"batch_size": 128, "setup_s": 4.0, "peak_bytes": 5 * GIB, "run_hours": 1.4},
    "memory": {"batch_size": 1},
}


def place(name, inside=""):
    return f"<!-- table: {name} -->\n{inside}<!-- end -->"


def row(benchmark, provider, ms=None, preset="sd15", **more):
    """A row as bench.py writes it; ms None: no time."""
    head = {"benchmark": benchmark, "preset": preset, "provider": provider, "density": 0.1}
    head |= {"match": True, "p50_ms": ms, "floor_share": 0.95, "optimizer_share": 0.031}
    head |= {"extra_bytes_without_result": 72 * 2**20, "kinds": {"copy": 0.1, "convolution": 0.6}}
    return head | HEAD[benchmark] | more


@pytest.fixture
def render(tmp_path, monkeypatch):
    """The tables of these names for a project with one result file."""
    import tables

    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def render(rows, name, file="h100", complete=True):
        result = {"machine": MACHINE, "complete": complete, "failures": [], "rows": rows}
        (tmp_path / f"{file}.json").write_text(json.dumps(result))
        return tables.render(f"a\n{place(name, 'old' + chr(10))}\nb\n")

    return render


def test_pages_keep_everything_else(tmp_path, monkeypatch):
    import tables

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name in ("memory", "step_time_gpu"):  # without a result file
        assert tables.render(f"a\n{place(name, 'old' + chr(10))}\nb") == f"a\n{place(name)}\nb"
    assert tables.render("no place at all") == "no place at all"
    with pytest.raises(SystemExit, match="no_such_table"):
        tables.render(place("no_such_table"))


def test_a_row_that_failed_its_gate_stops_it(render):
    wrong = row("step_time", "pecker_fast[cuda]", match=False)
    for name in ("step_time_gpu", "topk_gpu"):
        with pytest.raises(SystemExit, match="failed its gate"):
            render([wrong], name)


def test_the_faster_backend_gives_the_ratios(render):
    dense = {"mask": "none", "density": 1.0}
    rows = [
        row("step_time", "pecker_fast[cuda]", 1.4),
        row("step_time", "pecker_fast[triton]", 1.5),
        row("step_time", "torch_fused", 8.96, match=None),
        row("step_time", "gradmask_fused", 15.4, match=None),
        row("step_time", "pecker_fast[cuda]", 9.0, **dense),
        row("step_time", "torch_fused", 9.09, match=None, **dense),
    ]
    text = render(rows, "step_time_gpu")
    assert text.startswith("a\n<!-- table") and text.endswith("<!-- end -->\nb\n")
    assert "| SD 1.5, fp32 | no mask | 9.000 | - | 95% | 1.01 x | - | - | 150 |" in text
    heavy = "1.400 | 1.500 | 95% | 6.4 x | 11.0 x | - | 150 |"
    assert f"| SD 1.5, fp32 | heavy, density 0.1 | {heavy}" in text
    assert "H100" in text and "commit abc" in text and "Not every case" not in text
    assert "Not every case" in render(rows, "step_time_gpu", complete=False)


def test_topk_of_a_card(render):
    rows = [row("topk", "torch.topk", 18.8), row("topk", "pecker_fast[cuda]", 2.0)]
    rows.append(row("topk", "torch.sort", 1.0, numel=5))  # of a smaller network
    text = render(rows, "topk_gpu")
    assert "| pecker_fast[cuda] | 2.00 | 1.0 x | 95% | 400 MiB | 72 MiB |" in text
    assert "| `torch.topk` of the concatenation | 18.80 | 9.4 x |" in text
    assert "stable sort" not in text


def test_what_gpu_py_writes_can_be_rendered(run, monkeypatch, tmp_path):
    import tables
    from step_time import StepCase
    from topk import TopkCase

    assert run([StepCase("tiny"), TopkCase("tiny")])[0] == 0
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| tiny, fp32 | heavy, density 0.1 |" in tables.render(place("step_time_gpu"))
    assert "| top 10 % of 0.10 M scores |" in tables.render(place("topk_gpu"))
