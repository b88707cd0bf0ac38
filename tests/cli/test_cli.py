"""The commands on a user's own folders: what they write, what they print, their exit codes."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from pecker_fast import cli
from pecker_fast.models import ModelFolder

COMMANDS = ["demo", "mask", "erase", "sample", "evaluate", "info"]


def process(*arguments, **options):
    """Run the command line as a process of its own."""
    command = [sys.executable, "-m", "pecker_fast.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_help_needs_no_torch():
    script = (
        "import sys; from pecker_fast import cli; code = cli.main(['--help']); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_examples(run, command):
    done = run(command, "--help")
    assert done.code == 0
    assert f"pecker-fast {command}" in done.out.split("Example")[1]


@pytest.mark.parametrize("words", [(), ("patch",)])
def test_a_command_alone_shows_its_help(run, words):
    done = run(*words)
    assert "Commands:\n" in done.out + done.err and "Error" not in done.err


def test_version(run):
    assert run("--version").out.startswith("pecker-fast 0.")


@pytest.mark.slow
def test_waiting_threads_spin_only_for_a_moment():
    script = (
        "import os; from pecker_fast import cli; cli.main(['info']); "
        "print(os.environ['GOMP_SPINCOUNT'])"
    )
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines()[-1] == "2000"


def test_info(run):
    facts = json.loads(run("info", "--json").out)
    assert facts["backends"]["reference"] is None
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    assert facts["auto"]["cpu"] in facts["backends"]
    text = run("info").out
    for name, reason in facts["backends"].items():
        assert f"{name} " in text and (reason is None or reason in text)


def test_files_are_replaced_only_with_force(run, files, tmp_path):
    png = tmp_path / "grid.png"
    png.write_text("precious")
    arguments = ("sample", files.model, "--png", png, "--per-class", 2, "--steps", 1)
    done = run(*arguments)
    assert done.code == 2 and "--force" in done.err and png.read_text() == "precious"
    assert run(*arguments, "--force").code == 0
    assert Image.open(png).format == "PNG"


def test_internal_errors_exit_with_1_and_one_line(run, files, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelFolder, "load", lambda path: 1 / 0)
    done = run("sample", files.model, "--png", tmp_path / "x.png")
    assert done.code == 1 and done.out == ""
    assert done.err.count("\n") == 1 and "ZeroDivisionError" in done.err
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(ZeroDivisionError):
        run("sample", files.model, "--png", tmp_path / "x.png")


def test_interruption_exits_with_130(run, files, tmp_path, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelFolder, "load", interrupt)
    done = run("sample", files.model, "--png", tmp_path / "x.png")
    assert done.code == 130 and done.err.strip() == "pecker-fast: interrupted"


@pytest.mark.slow
def test_ctrl_c_in_a_real_process(files, tmp_path):
    import signal

    command = [sys.executable, "-m", "pecker_fast.cli", "sample", files.model]
    command += ["--out", str(tmp_path / "x"), "--per-class", "20000", "--steps", "2"]
    command += ["--batch-size", "500"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
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
def test_a_reader_that_leaves_early(files):
    command = f"{sys.executable} -m pecker_fast.cli info | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "versions\n" and done.stderr == ""


def test_the_installed_command():
    done = process("--version")
    assert done.returncode == 0 and done.stdout.startswith("pecker-fast ")
