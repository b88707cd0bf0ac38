"""benchmarks/gpu.py, on the CPU: the file is written case by case, failures are kept apart."""

import json

import pytest


@pytest.fixture
def gpu(monkeypatch):
    import gpu
    import step_time

    figures = {"copy_gb_per_s": 10.0, "in_place_gb_per_s": 20.0, "roof_gb_per_s": 20.0}
    monkeypatch.setattr(step_time, "bandwidth", lambda timer, device: dict(figures))
    return gpu


@pytest.fixture
def run(gpu, tmp_path):
    """Run some cases on the CPU; the exit code and the file."""

    def run(cases, *options):
        path = tmp_path / "card.json"
        fixed = ["--device", "cpu", "--backend", "reference", "--repeats", "1"]
        code = gpu.main([*fixed, "--json", str(path), *options], cases)
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


def test_all_that_is_measured_is_in_one_file(gpu, run, capsys):
    cases = [gpu.StepCase("tiny", one_tensor=True), gpu.TopkCase("tiny")]
    code, result = run(cases, "--commit", "abc1234")
    assert (code, result["complete"], result["failures"]) == (0, True, [])
    assert result["machine"]["commit"] == "abc1234"
    step, topk = result["rows"][0], result["rows"][-1]
    assert (step["benchmark"], step["preset"], step["match"]) == ("step_time", "tiny", True)
    assert step["times_one_tensor"] > 0 and step["floor_share"] > 0
    assert (topk["benchmark"], topk["match"], topk["tensors"]) == ("topk", "exact", 6)
    assert "of one tensor" in capsys.readouterr().out


def test_a_run_that_is_cut_off_leaves_what_it_measured(gpu, run, monkeypatch):
    def cut(self, setup):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu.TopkCase, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        run([gpu.StepCase("tiny", "none", 1.0), gpu.TopkCase("tiny")])
    _, result = run([gpu.StepCase("tiny", "none", 1.0)], "--minutes", "-1")
    assert not result["complete"] and len(result["rows"]) == 3


def test_a_case_that_fails_does_not_take_the_others_with_it(gpu, run):
    code, result = run([gpu.StepCase("no such preset"), gpu.StepCase("tiny")])
    assert code == 1
    (failure,) = result["failures"]
    assert failure.startswith("step_time no such preset float32 heavy 0.1 beta1 0.9: KeyError")
    assert result["rows"][0]["preset"] == "tiny"


def test_a_wrong_result_is_an_error(gpu, run, monkeypatch):
    import providers

    monkeypatch.setattr(providers, "gate", lambda *_: False)
    code, result = run([gpu.StepCase("tiny")])
    assert code == 1 and result["rows"][0]["match"] is False


def test_cases_can_be_chosen(gpu, capsys):
    assert gpu.main(["--list", "--only", "sdxl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("sdxl" in line for line in lines)
    assert gpu.main(["--only", "sd3"]) == 2


def test_without_a_gpu_it_says_so(gpu, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "gpu.py: torch sees no CUDA device\n"
