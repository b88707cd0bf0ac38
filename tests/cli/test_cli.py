"""The contract of every command: start-up, exit codes, stdout and stderr."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pecker_fast import SaliencyMask, cli, save_patch
from pecker_fast.distill.config import load_config, recipe_names
from pecker_fast.methods import config, training_config
from pecker_fast.models import ModelFolder
from pecker_fast.runs.settings import recipes_in

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e"
PROGRAM = [sys.executable, "-m", "pecker_fast.cli"]


def process(code, *arguments, **options):
    """Run code of Python in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


# ---- starting


@pytest.mark.parametrize("words", [(), ("patch",)])
def test_a_command_alone_shows_its_help(run, words):
    done = run(*words)
    assert "Commands:\n" in done.out + done.err and "Error" not in done.err


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


def test_help_and_refusals_that_need_no_torch_do_not_load_it(tmp_path):
    code = (
        "import sys; from pecker_fast.cli import main\n"
        "assert main(['--help']) == 0\n"
        "for line in sys.argv[1].strip().splitlines():\n"
        "    code = main(line.split())\n"
        "    assert code == 2 and 'torch' not in sys.modules, (line, code)\n"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "there").mkdir()
    done = process(code, REFUSED, cwd=tmp_path)
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
        "code = main(['erase', str(teacher_folder()), '--forget', '9',"
        "'--override', '8', '--out', 'run',"
        "'--iterations', '1', '--set', 'batch_size=2', '--set', 'saliency.batches=1',"
        "'--set', 'saliency.batch_size=2'])\n"
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
    done = process(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("loading torch and the model ...\n")
    assert (tmp_path / "run" / "model" / "pecker_fast.json").is_file()


# ---- ending


def test_internal_errors_exit_with_1_and_one_line(run, files, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelFolder, "load", lambda path: 1 / 0)
    done = run("sample", files.model, "--png", tmp_path / "x.png")
    assert done.code == 1 and done.out == ""
    assert done.err.count("\n") == 1 and "ZeroDivisionError" in done.err
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(ZeroDivisionError):
        run("sample", files.model, "--png", tmp_path / "x.png")


@pytest.mark.slow
def test_ctrl_c_in_a_real_process(files, tmp_path):
    arguments = ["sample", files.model, "--out", str(tmp_path / "x"), "--per-class", "20000"]
    arguments += ["--steps", "2", "--batch-size", "500"]
    child = subprocess.Popen([*PROGRAM, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        # The suite's own limit ends a wait in vain.
        while not any((tmp_path / "x").glob("*/*.png")):
            assert child.poll() is None, f"ended before it sampled: {child.stderr.read()}"
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, rest = child.communicate()
    finally:
        child.kill()
    assert child.returncode == 130, rest
    assert "Traceback" not in rest and rest.endswith("pecker-fast: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]  # to go on from


@pytest.mark.slow
def test_a_reader_that_leaves_early():
    command = f"{sys.executable} -m pecker_fast.cli info | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "versions\n" and done.stderr == ""


# ---- what is printed


def test_info(run):
    facts = json.loads(run("info", "--json").out)
    assert facts["backends"]["reference"] is None
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    assert facts["auto"]["cpu"] in facts["backends"]


def test_recipes(tmp_path):
    def recipes(*arguments):
        done = CliRunner().invoke(cli.group, ["recipes", *map(str, arguments)])
        assert done.exit_code == 0
        return done.output

    lines = [line.split(maxsplit=1) for line in recipes("list").splitlines() if line[0] == " "]
    expected = {*recipe_names(), *recipes_in(config.RECIPES), *recipes_in(training_config.RECIPES)}
    assert {name for name, *_ in lines} == expected and all(len(line) == 2 for line in lines)
    shown = recipes("show", "sfd_celebrity")  # what it builds on comes first
    assert shown.index("# ---- object") < shown.index("# ---- sfd_celebrity")
    copy = tmp_path / "mine.yaml"
    recipes("copy", "second_stage", copy)
    assert load_config(copy) == load_config("second_stage")
    copy.write_text("mine")
    assert cli.main(["recipes", "copy", "object", str(copy)]) == 2
    assert copy.read_text() == "mine"
    for name in ("nothing", "", "../config", "\x1b[31m"):
        assert cli.main(["recipes", "show", name]) == 2


def test_what_a_patch_says_about_itself_is_harmless_and_short(run, tmp_path):
    base, erased = {"w": torch.zeros(8)}, {"w": torch.ones(8)}
    about = {"concept": f"a\n  base      forged {HOSTILE}", HOSTILE: "x" * 10**5}
    file, mask = tmp_path / "p.safetensors", SaliencyMask.from_dense(erased)
    save_patch(file, base, erased, mask, **about)
    done = run("patch", "info", file)
    assert done.code == 0 and all(line.isprintable() for line in done.out.splitlines())
    assert sum(line.lstrip().startswith("base ") for line in done.out.splitlines()) == 1
    assert len(done.out) < 3000


@pytest.mark.parametrize("text", [HOSTILE, "x" * 10**5])
def test_what_is_said_of_arguments_is_harmless_and_short(run, files, tmp_path, text):
    for arguments in (
        ["sample", files.model, "--class", text, "--png", tmp_path / "x.png"],
        ["sample", tmp_path / text, "--png", tmp_path / "x.png"],
        ["sample", files.model, "--seed", text, "--png", tmp_path / "x.png"],
        [text],
    ):
        done = run(*arguments)
        assert done.code == 2 and len(done.err) < 2500
        assert all(line.isprintable() for line in done.err.splitlines())


def test_files_are_replaced_only_with_force(run, files, tmp_path):
    png = tmp_path / "grid.png"
    png.write_text("precious")
    arguments = ("sample", files.model, "--png", png, "--per-class", 2, "--steps", 1)
    done = run(*arguments)
    assert done.code == 2 and "--force" in done.err and png.read_text() == "precious"
    assert run(*arguments, "--force").code == 0
    assert Image.open(png).format == "PNG"
