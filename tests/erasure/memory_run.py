"""Erases from a pipeline and prints, as JSON, the peak of resident memory in each part of the run.

python memory_run.py PIPELINE OUT
"""

import json
import sys
from pathlib import Path

from pecker_fast import erase
from pecker_fast.erasure import run

PARTS = ("set up", "iterations", "result")


def peak():
    """MiB since the last call."""
    line = next(ln for ln in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in ln)
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) / 1024


def watched(steps, *others):
    """The same steps, looked at before the first and after the last."""
    peaks.append(peak())
    yield from original(steps, *others)
    peaks.append(peak())


if __name__ == "__main__":
    original, run.saving_at_interrupt = run.saving_at_interrupt, watched
    pipeline, out = sys.argv[1:]
    peak()
    peaks, idle = [], peak()
    settings = {
        "iterations": 2, "batch_size": 1, "mask.apply": "both", "mask.density": 0.1,
        "saliency.batches": 1, "saliency.batch_size": 1, "saliency.kind": "forget",
        "generator.scores": True, "generator.one_step": 0.0,
        "generator.every_step": 0.0,
    }  # fmt: skip
    # Among the settings: as a keyword it is the folder of a first stage.
    settings["settings"] = {"first_stage": "none"}
    erase(pipeline, out=out, config="demo_emoji_object", device="cpu", previews=False, **settings)
    peaks.append(peak())
    print(json.dumps(dict(zip(PARTS, (found - idle for found in peaks), strict=True))))
