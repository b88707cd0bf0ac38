"""Tables of a GPU's figures: there where there are figures, and nowhere else."""

import json

import pytest

HEAD = {"preset": "sd15", "dtype": "float32", "mask": "heavy", "density": 0.1, "beta1": 0.9}
PLACES = """a
<!-- table: step_time_gpu -->
old
<!-- end -->
b
<!-- table: topk_gpu -->
<!-- end -->
"""
EMPTY = PLACES.replace("old\n", "")


def step_row(backend, ms, match=True, **more):
    """A row of ours, as step_time.py writes it."""
    from dataclasses import asdict

    from step_time import Row

    row = Row(
        **{**HEAD, "layout": "model", "lines": 0.2, "provider": f"pecker_fast[{backend}]"},
        match=match, p50_ms=ms, host_us=150.0, floor_share=0.95, vs_torch_fused=6.4,
        vs_gradmask=11.0, vs_restore=None,
    )  # fmt: skip
    return {"benchmark": "step_time", **asdict(row), **more}


def topk_row(provider, ms, match="exact"):
    return {
        "benchmark": "topk", "preset": "sd15", "numel": 859_520_964, "tensors": 686,
        "scores": "heavy", "density": 0.1, "provider": provider, "match": match, "ms_median": ms,
        "floor_share": 1.14 / ms, "peak_extra_bytes": 400 * 2**20,
        "extra_bytes_without_result": 72 * 2**20,
    }  # fmt: skip


@pytest.fixture
def render(tmp_path, monkeypatch):
    """The README of a project whose results are these rows (None: no file of a GPU)."""
    import tables

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "TABLES", {})
    machine = {"device": "H100", "torch": "2.11", "cuda": "13.0", "triton": "3.6.0",
               "driver": "580", "commit": "abc", "copy_gb_per_s": 3029.0}  # fmt: skip

    def render(rows, text=PLACES, complete=True):
        (tmp_path / "step_time-cpu.json").write_text("{}")  # not a GPU's
        if rows is not None:
            result = {"machine": machine, "complete": complete, "failures": [], "rows": rows}
            (tmp_path / "h100.json").write_text(json.dumps(result))
        return tables.render(text)

    return render


def test_nothing_without_a_result_file(render):
    assert render(None) == EMPTY
    assert render(None, "no place at all") == "no place at all"


def test_no_place_is_needed(render):
    assert render([step_row("cuda", 1.4)], "no place at all") == "no place at all"


def test_two_places_are_an_error(render):
    with pytest.raises(SystemExit, match="one place for the table 'step_time_gpu', found 2"):
        render([step_row("cuda", 1.4)], 2 * PLACES)


def test_the_faster_backend_gives_the_ratios(render):
    rows = [
        step_row("cuda", 1.4, times_one_tensor=1.1),
        step_row("triton", 1.5, vs_gradmask=10.0),
        step_row("cuda", 9.0, mask="none", density=1.0, vs_gradmask=None, vs_torch_fused=1.01),
        step_row("cuda", 1.3, layout="one tensor"),
    ]
    text = render(rows)
    assert "| SD 1.5, fp32 | no mask | 9.000 | - | 95% | 1.01 x | - | - | 150 |" in text
    assert (
        "| SD 1.5, fp32 | heavy, density 0.1 | 1.400 | 1.500 | 95% | 6.4 x | 11.0 x | - | 150 |"
        in text
    )
    assert "The triton backend is the faster one in no line." in text
    assert "SD 1.5, fp32: 1.10 times the time of the same step in one tensor." in text
    assert "H100, torch 2.11, CUDA 13.0, Triton 3.6.0, driver 580, commit abc." in text
    assert "Not every case" not in text and "1.300" not in text
    assert "Not every case was measured." in render(rows, complete=False)


def test_topk(render):
    rows = [topk_row("torch.topk", 18.8, "ties"), topk_row("pecker_fast cuda", 2.0)]
    text = render(rows)
    assert "| top 10 % of 859.52 M scores |" in text
    assert "| pecker_fast cuda | 2.00 | 1.0 x | 57% | 400 MiB | 72 MiB |" in text
    assert "| `torch.topk` of the concatenation | 18.80 | 9.4 x |" in text


def test_a_row_that_failed_its_gate_stops_it(render):
    with pytest.raises(AssertionError, match="failed its gate"):
        render([step_row("cuda", None, match=False)])
    with pytest.raises(AssertionError, match="failed its gate"):
        render([topk_row("pecker_fast cuda", 2.0, "WRONG")])


def test_what_gpu_py_writes_can_be_rendered(render, tmp_path, monkeypatch):
    import gpu
    import step_time
    import tables

    figures = {"copy_gb_per_s": 10.0, "in_place_gb_per_s": 20.0, "roof_gb_per_s": 20.0}
    monkeypatch.setattr(step_time, "bandwidth", lambda timer, device: figures)
    cases = [gpu.StepCase("tiny", one_tensor=True), gpu.TopkCase("tiny")]
    options = ["--device", "cpu", "--repeats", "1", "--json", str(tmp_path / "card.json")]
    assert gpu.main(options, cases) == 0
    text = tables.render(PLACES)
    assert "| tiny, fp32 | heavy, density 0.1 |" in text
    assert "| top 10 % of 0.10 M scores |" in text
