"""A run takes no more memory before and after its iterations than in them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from pecker_fast_demo import emoji_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux"),
]


def test_the_whole_run_fits_into_the_memory_of_its_iteration(tmp_path):
    """A U-Net of 27 M parameters, so that weights are what counts."""
    pipeline = tmp_path / "pipeline"
    shutil.copytree(emoji_folder(), pipeline)
    config = UNet2DConditionModel.load_config(pipeline / "unet")
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**config, "block_out_channels": [192, 320]})
    unet.save_pretrained(pipeline / "unet")
    megabytes = sum(p.numel() for p in unet.parameters()) * 4 / 2**20
    script = Path(__file__).with_name("memory_run.py")
    done = subprocess.run(
        [sys.executable, script, pipeline, tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=600,
        # What is freed goes back at once; else the heap keeps what earlier parts have used.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert peaks["iterations"] > 3 * megabytes  # the original, the three networks, gradients
    assert max(peaks.values()) <= 1.05 * peaks["iterations"], peaks
