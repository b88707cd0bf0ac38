"""Run one small case of each kernel of a backend: python tests/every_kernel.py triton|cuda.

For compute-sanitizer, which makes everything a hundred times slower; results are checked elsewhere.
"""

from __future__ import annotations

import sys

import torch

from pecker_fast import MaskedAdamW, backends
from pecker_fast.backends import device_topk


def steps(name: str, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for density in (None, 0.3):
            params = {
                n: torch.nn.Parameter(torch.randn(s).to(device, dtype))
                for n, s in {"a": (40, 61), "b": (5,), "c": (0,)}.items()
            }
            masks = {n: torch.rand(p.shape).to(device) < 0.3 for n, p in params.items()}
            optimizer = MaskedAdamW(
                params.items(), mask=masks if density else None, amsgrad=True, backend=name
            )
            for _ in range(2):
                for param in params.values():
                    param.grad = torch.randn_like(param)
                optimizer.step()


def copies(backend: backends.Backend, device: str) -> None:
    params = [torch.randn(40, 61).to(device), torch.randn(5).to(device)]
    indices = [torch.arange(0, p.numel(), 3, dtype=torch.int32, device=device) for p in params]
    vectors = [torch.zeros(p.numel(), device=device) for p in indices]
    for count in (1, 2):  # alone, without a table, and as a list
        backend.gather_salient_(params[:count], indices[:count], vectors[:count])
        backend.gather_salient_(params[:count], indices[:count], vectors[:count], accumulate=True)
        backend.scatter_salient_(params[:count], indices[:count], vectors[:count])
        backend.swap_salient_(params[:count], indices[:count], vectors[:count])
        backend.ema_salient_(vectors[:count], params[:count], indices[:count], 0.9)
    backend.norm_salient(vectors)


def selections(backend: backends.Backend, device: str) -> None:
    scores = [torch.rand(9001).to(device), torch.rand(3).to(device)]
    backend.select_topk(scores, 900)
    backend.select_groups(scores, [64, 2], 900)
    device_topk._SAMPLE_FROM, device_topk._SAMPLES = 1000, 512  # small inputs take the fast way
    backend.select_topk(scores, 900)


def main(name: str, device: str = "cuda") -> None:
    backend = backends.select(name, device)
    steps(name, device)
    copies(backend, device)
    selections(backend, device)
    if device == "cuda":
        torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main(*sys.argv[1:])
