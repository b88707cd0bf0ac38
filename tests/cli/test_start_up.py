"""What needs no torch is refused before it is loaded, and what loads long says so."""

import subprocess
import sys

import pytest

REFUSED = """
info extra
erase missing --forget 1 --override 2 --out run
erase there --out run
erase there --forget 1 --override 2 --config missing --out run
erase there --forget 1 --override 2 --set batchsize=1 --out run
erase there --forget 1 --override 1 --out run
erase there --config cifar10_salun --set batchsize=1 --out run
erase there --forget 1 --override 2 --mask-file missing --out run
erase there --forget 1 --override 2 --out full
erase --pipeline missing --recipe nudity --out run
erase --pipeline there --recipe cifar10_forget --out run
mask missing --forget 1 --override 2
mask there --forget 1 --override 2 --density 2
sample missing --png a.png
sample there --png missing/a.png
evaluate missing --classifier there
evaluate there --classifier missing
patch info missing
patch apply missing missing --out model
convert missing --out model
compare missing --out model
train-teacher --config missing --out run
train-teacher --config cifar10_teacher --out full
train-classifier --dataset cifar10 --set batchsize=1 --out run
demo --set batchsize=1
demo --out full
"""


def test_refusals_that_need_no_torch_do_not_load_it(tmp_path):
    code = (
        "import sys; from pecker_fast.cli import main\n"
        "for line in sys.argv[1].strip().splitlines():\n"
        "    code = main(line.split())\n"
        "    assert code == 2 and 'torch' not in sys.modules, (line, code)\n"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "there").mkdir()
    command = [sys.executable, "-c", code, REFUSED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["full", "there"]


@pytest.mark.slow
def test_erase_loads_no_package_that_it_does_not_need(tmp_path):
    """A short run of the shipped model, without a classifier."""
    code = (
        "import sys; from pecker_fast.cli import main\n"
        "sys.modules.update(dict.fromkeys(['torchvision', 'torch_fidelity', 'onnxruntime',"
        "'matplotlib', 'jinja2', 'peft']))\n"  # None: not importable; PEFT brings transformers
        "assert main(['sample', 'empty', '--png', 'a.png']) == 2\n"
        "from pecker_fast_demo import teacher_folder\n"
        "code = main(['erase', str(teacher_folder()), '--config', 'demo', '--out', 'run',"
        "'--iterations', '1', '--set', 'batch_size=2', '--set', 'saliency.batches=1',"
        "'--set', 'saliency.batch_size=2', '--set', 'first_stage=none',"
        "'--set', 'saliency.kind=forget'])\n"
        "assert code == 0 and 'transformers' not in sys.modules\n"
        # And it leaves diffusers whole.
        "import diffusers\n"
        "from pecker_fast.models.architectures.class_networks import UNet2DModel\n"
        "assert diffusers.UNet2DModel is UNet2DModel\n"
        "from diffusers.models.unets import UNet2DConditionModel, unet_2d\n"
        "assert diffusers.UNet2DConditionModel is UNet2DConditionModel\n"
        "assert 'transformers' in sys.modules and unet_2d.UNet2DModel is UNet2DModel\n"
    )
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()[:2]
    assert first == "loading torch and the model ..." and "empty" in second
    assert (tmp_path / "run" / "model" / "pecker_fast.json").is_file()
