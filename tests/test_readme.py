"""Every Python block of README and docs/ runs, and does what the text says; tables are current."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TRAINS = ROOT / "docs" / "erase-a-class.md"


@pytest.fixture(scope="module")
def left_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, object]]:
    """Run a page's blocks one after the other, once; what they leave behind."""

    @cache
    def run_blocks(page: Path) -> dict[str, object]:
        torch.manual_seed(0)
        names: dict[str, object] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp(page.stem))
            for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S):
                exec(compile(block, str(page), "exec"), names)
        return names

    return run_blocks


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page == TRAINS)) for page in PAGES],
    ids=lambda page: page.name,
)
def test_blocks_of_a_page_run(page: Path, left_by) -> None:
    assert bool(left_by(page)) == ("```python" in page.read_text())


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_step_equals_the_plain_torch_in_the_readme(left_by) -> None:
    namespace = left_by(README)
    frozen = 0
    for name, param in namespace["model"].named_parameters():
        expected, salient = namespace["expected"][name], namespace["salient"][name]
        torch.testing.assert_close(param.detach(), expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(param.detach()[~salient], expected[~salient])
        frozen += int((~salient).sum())
    assert frozen > 0.8 * sum(p.numel() for p in namespace["model"].parameters())


@pytest.mark.slow
def test_trainer_block_leaves_frozen_parameters_alone(left_by) -> None:
    check = left_by(TRAINS)["trainer"].verify_frozen()
    assert check.frozen > 0
    assert check.frozen_changed == 0


def test_patch_block_makes_the_erased_network_and_the_model_again(left_by) -> None:
    namespace = left_by(ROOT / "docs" / "erase-a-concept.md")
    model, erased = namespace["model"], namespace["erased"]
    after = {name: param.detach() for name, param in erased.named_parameters()}
    moved = {n: int((p.detach() != after[n]).sum()) for n, p in model.named_parameters()}
    assert moved.pop("0.weight") == int(namespace["salient"]["0.weight"].sum())
    assert set(moved.values()) == {0}


def test_masking_the_gradient_freezes_nothing() -> None:
    """The three numbers of "Why not `grad *= mask`?"."""
    assert _moved(weight_decay=1e-2, mask_from=0) == 900
    assert _moved(weight_decay=0.0, mask_from=5) == 900
    assert _moved(weight_decay=0.0, mask_from=0) == 0
    param = _nan_outside_the_mask()
    assert bool(param.isnan().any())


def test_tables_are_generated_from_the_result_files() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _moved(weight_decay: float, mask_from: int) -> int:
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(1000))
    optimizer = torch.optim.AdamW([param], lr=1e-3, weight_decay=weight_decay)
    mask = torch.zeros(1000)
    mask[:100] = 1
    before = None
    for step in range(20 + mask_from):
        if step == mask_from:
            before = param.detach().clone()
        param.grad = torch.randn(1000)
        if step >= mask_from:
            param.grad *= mask
        optimizer.step()
    assert before is not None
    return int((param.detach() != before)[100:].sum())


def _nan_outside_the_mask() -> torch.Tensor:
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([param], weight_decay=0.0)
    param.grad = torch.tensor([1.0, 1.0, 1.0, float("nan")]) * torch.tensor([1.0, 1.0, 1.0, 0.0])
    optimizer.step()
    return param.detach()[3:]
