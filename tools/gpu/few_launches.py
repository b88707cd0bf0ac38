"""A few launches for a profiler: few_launches.py step|topk MASK DENSITY BACKEND DEVICE."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import torch
from inputs import make_input, random_scores, shapes
from providers import ours

from pecker_fast import backends


def main(what: str, mask: str, density: str, name: str, device: str) -> None:
    preset = "sd15" if device.startswith("cuda") else "tiny"
    if name not in ("reference", "cpu") and device == "cpu":
        name = "auto"
    if what == "step":
        made = make_input(preset, torch.float32, mask, float(density), device)
        optimizer = ours(made, name)
        for _ in range(3):
            made.fresh_grads()
            optimizer.step()
    else:
        scores = list(random_scores(shapes(preset), device).values())
        count = round(float(density) * sum(score.numel() for score in scores))
        for _ in range(2):
            backends.select(name, device).select_topk(scores, count)
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
