"""A masked step against gathering the salient entries for torch.optim.AdamW, and back."""

import torch
from kernels.benchmark import Benchmark


class MaskedStep(Benchmark):
    seed = 0

    def setup(self, density=0.1, count=64, size=1024):
        device = self.device
        self.params = [torch.randn(size, size, device=device) for _ in range(count)]
        self.masks = [torch.rand(size, size, device=device) < density for _ in range(count)]
        self.copies = [p.clone() for p in self.params]
        self.compact = [p[m].clone() for p, m in zip(self.params, self.masks, strict=True)]
        self.grads = [torch.randn_like(p) for p in self.params]
        for param, grad in zip(self.params, self.grads, strict=True):
            param.requires_grad_().grad = grad
        mask = dict(zip(self.params, self.masks, strict=True))
        self.optimizer = self.kernel.MaskedAdamW(self.params, lr=1e-3, mask=mask)
        self.plain = torch.optim.AdamW(self.compact, lr=1e-3)
        self.steps = 0

    def setup_sparse(self):
        self.setup(density=0.01)

    def benchmark_base(self):
        self.optimizer.step()
        self.steps += 1
        self.out = self.params[-1].detach()

    benchmark_sparse = benchmark_base

    def verify_base(self):
        for _ in range(max(self.steps, 1)):
            for compact, grad, mask in zip(self.compact, self.grads, self.masks, strict=True):
                compact.grad = grad[mask]
            self.plain.step()
            for copy, compact, mask in zip(self.copies, self.compact, self.masks, strict=True):
                copy[mask] = compact
        self.steps = 0
        return self.copies[-1]

    verify_sparse = verify_base
