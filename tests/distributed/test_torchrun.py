"""The launcher itself: a run goes on after a failure; Ctrl-C in its terminal saves and ends all.

--force removes an earlier run at the first attempt, and never what the launch itself has saved.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from fault_run import build, erase, state

MAIN = Path(__file__).parent / "fault_main.py"


def wait_for_iteration(first, out, process):
    """Wait for a checkpoint of this iteration or a later one; only the last two are kept."""
    until = time.monotonic() + 120
    while not any(int(file.stem[-8:]) >= first for file in out.glob("checkpoint-*.pt")):
        assert process.poll() is None, "torchrun ended"
        assert time.monotonic() < until, f"no checkpoint of iteration {first}"
        time.sleep(0.05)


def test_torchrun_restarts_a_run_and_ctrl_c_ends_it(tmp_path):
    model = build(tmp_path / "model")
    out = tmp_path / "run"
    out.mkdir()
    for name in ("run.lock", "report.json"):  # an earlier run
        (out / name).touch()
    arguments = erase(model, out, "--force", iterations=10**6)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
        "--max-restarts", 1, MAIN, 1, "killed in a step", *arguments,
    ]  # fmt: skip
    with open(tmp_path / "said.txt", "wb") as said:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            wait_for_iteration(4, out, process)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all at once
            process.wait(60)
        finally:
            process.terminate()  # its processes are in sessions of their own: it ends them
            process.wait(60)
    text = (tmp_path / "said.txt").read_text()
    assert "resuming at iteration 2 of 1000000\n" in text
    # The progress bar of one process may be on the line on which another one writes.
    ours = re.findall(r"pecker-fast \(rank [01]\): .*", text)
    stopped = "pecker-fast (rank 0): stopped by SIGTERM: rank 1 was killed or stopped, or has"
    assert ours[0].startswith(stopped)
    iteration = state(out)["iteration"]
    assert iteration >= 4
    saved = f"interrupted; iteration {iteration} is saved; start the same command again to go on"
    both = [f"pecker-fast (rank {rank}): {saved} from there" for rank in range(2)]
    assert sorted(ours[1:]) == both
    assert not (out / "model").exists() and not (out / "report.json").exists()
