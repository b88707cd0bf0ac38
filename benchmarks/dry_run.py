"""What `erase --dry-run` says of a run, and what the run then takes, both as commands.

    python benchmarks/dry_run.py --only sd15 --threads 1
    python benchmarks/dry_run.py --json benchmarks/results/dry_run-cpu.json

The network has the preset's full size (or a share of its channels) and random weights, in the
pipeline that ships, whose text encoder gets the size of CLIP ViT-L/14. One iteration of one image
to keep and one to forget. A row matches where the peak of resident memory lies within 15 % of what
was computed, diffusers loads the result, and no frozen entry differs from the original.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from bench import Case, Setup, command, make_parser
from networks import NETWORKS
from rows import Row

from pecker_fast.data import pipeline_folder
from pecker_fast.distill.config import PeckerConfig
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import check_frozen
from pecker_fast.runs.settings import apply_overrides

# The process says it itself: what `wait4` tells begins with what its parent held when it forked.
_COMMAND = """
import sys
from pathlib import Path

from pecker_fast.cli import main

code = main(sys.argv[2:])
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
sys.exit(code)
"""
TOKENS = 77
CHANNELS = (320, 640, 1280, 1280)  # of the preset sd15
SETTINGS: dict[str, Any] = {
    "iterations": 1, "batch_size": 1, "micro_batch": 1, "precision": "fp32", "first_stage": "none",
    "saliency.batches": 1, "saliency.batch_size": 1,
    "text.remain": ["a lighthouse", "a red fishing boat", "an old stone bridge", "two horses"],
}  # fmt: skip


@dataclass(frozen=True)
class DryRunCase(Case):
    """A run; `preset` is of `networks.NETWORKS`."""

    benchmark = "dry_run"

    side: int  # of the latents
    channels: float = 1.0  # share of the network's
    recompute_blocks: bool = False  # as the setting

    def rows(self, setup: Setup) -> Iterator[Row]:
        """The dry run, then the run."""
        with tempfile.TemporaryDirectory() as folder:
            pipeline, config, run = (Path(folder, name) for name in ("sd", "run.yaml", "run"))
            self._write_pipeline(pipeline)
            settings: dict[str, Any] = {"base": "object"}
            changed = {**SETTINGS, "recompute_blocks": self.recompute_blocks}
            apply_overrides(PeckerConfig, settings, changed)
            config.write_text(yaml.safe_dump(settings))
            words = [
                "erase", "--pipeline", pipeline, "--config", config, "--name", "church",
                "--override", "barn", "--out", run, "--no-previews", "--json", "--quiet",
                "--device", setup.device, "--threads", torch.get_num_threads(),
            ]  # fmt: skip
            dry, dry_peak, dry_s = _timed(*words, "--dry-run")
            assert not run.exists(), "a dry run leaves nothing"
            done, peak, seconds = _timed(*words)
            frozen_changed = _frozen_changed(pipeline, run)
        computed = dry["peak"]["size"] + dry["process_bytes"]
        yield {
            "benchmark": self.benchmark,
            **asdict(self),
            "settings": changed,
            "match": abs(peak / computed - 1) <= 0.15 and frozen_changed == 0,
            "network": dry["network"],
            "computed_peak_bytes": computed,
            "moment": dry["peak"]["moment"],
            "parts": {**dry["peak"]["parts"], "this process": dry["process_bytes"]},
            "measured_peak_bytes": peak,
            "dry_run_peak_bytes": dry_peak,
            "iteration_s": dry["iteration_s"],
            "dry_run_s": dry_s,
            "run_s": seconds,
            "disk_bytes": dry["disk_bytes"],
            "frozen_changed": frozen_changed,
            "reported_frozen_changed": done["frozen_changed"],
        }

    def _write_pipeline(self, folder: Path) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        shutil.copytree(pipeline_folder(), folder)
        (folder / "pecker_fast.json").unlink()
        torch.manual_seed(0)
        options: dict[str, Any] = {"sample_size": self.side}
        if self.channels != 1:
            options["block_out_channels"] = tuple(int(self.channels * c) for c in CHANNELS)
        unet: Any = NETWORKS[self.preset].make(**options)
        unet.save_pretrained(folder / "unet")
        width = unet.config.cross_attention_dim
        text = CLIPTextConfig.from_pretrained(folder / "text_encoder")
        text.update({
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 12,
            "num_attention_heads": max(1, width // 64), "max_position_embeddings": TOKENS,
        })  # fmt: skip
        CLIPTextModel(text).save_pretrained(folder / "text_encoder")
        tokenizer = folder / "tokenizer" / "tokenizer_config.json"
        about = json.loads(tokenizer.read_text()) | {"model_max_length": TOKENS}
        tokenizer.write_text(json.dumps(about))


def _timed(*words: Any) -> tuple[dict[str, Any], int, float]:
    """The JSON that a command prints, the peak of its resident memory in bytes, and seconds."""
    begun = time.monotonic()
    with tempfile.NamedTemporaryFile("r") as status:
        command = [sys.executable, "-c", _COMMAND, status.name, *map(str, words)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{words[-1]}: exit code {done.returncode}")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    assert peak, "Linux says how much a process held"
    return json.loads(done.stdout), int(peak[1]) * 1024, time.monotonic() - begun


def _frozen_changed(before: Path, run: Path) -> int:
    """Frozen entries of the U-Net that diffusers loads that have other bits than before."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    after = StableDiffusionPipeline.from_pretrained(run / "pipeline", safety_checker=None).unet
    original = UNet2DConditionModel.from_pretrained(before / "unet")
    salient = SaliencyMask.load(run / "mask.safetensors").to_dense()
    found = check_frozen(dict(original.named_parameters()), dict(after.named_parameters()), salient)
    return found.frozen_changed


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser(__doc__, repeats=1).parse_args(argv)
    cases = [DryRunCase("sd15", 32, 0.5), DryRunCase("sd15", 32), DryRunCase("sd15", 64)]
    return command(options, cases, go_on=True)


if __name__ == "__main__":
    sys.exit(main())
