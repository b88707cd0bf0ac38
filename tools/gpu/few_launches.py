"""A few launches at SD 1.5's size for a profiler: step|topk MASK DENSITY BACKEND."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import torch
from inputs import make_input, random_scores, shapes
from providers import ours

from pecker_fast import backends


def main(what: str, mask: str, density: str, name: str) -> None:
    if what == "step":
        made = make_input("sd15", torch.float32, mask, float(density), "cuda")
        optimizer = ours(made, name)
        for _ in range(3):
            made.fresh_grads()
            optimizer.step()
    else:
        scores = list(random_scores(shapes("sd15"), "cuda").values())
        count = round(float(density) * sum(score.numel() for score in scores))
        for _ in range(2):
            backends.select(name, "cuda").select_topk(scores, count)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
