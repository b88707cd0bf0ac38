"""What MaskedAdamW must do, said with torch.optim.AdamW alone; knows nothing of the package."""

from __future__ import annotations

import torch
from torch import Tensor

# rtol and atol by parameter dtype. Float32 and float64 differ from torch only in how its
# vectorized loops contract multiply-adds; low precision is compared after one rounding, which may
# fall to either side: one unit in the last place.
TOLERANCES = {
    torch.float32: (1e-6, 1e-7),
    torch.float64: (1e-12, 1e-15),
    torch.bfloat16: (2**-7, 1e-7),
    torch.float16: (2**-10, 1e-7),
}


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bit patterns, so that NaN and -0 compare as they are."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(integers[tensor.element_size()])


class Oracle:
    """torch.optim.AdamW on dense tensors that hold p[M].

    Args:
        params: name -> parameter as it is before the first step.
        masks: name -> bool tensor; None: everything is salient.
        groups: group number of each name, for `options`.
        options: AdamW's keyword arguments, one dict per group.
        clip_value: clamp gradients first.
    """

    def __init__(self, params, masks, options, groups=None, clip_value=None):
        self.before = {name: param.detach().clone() for name, param in params.items()}
        self.masks = masks or {n: torch.ones_like(p, dtype=torch.bool) for n, p in params.items()}
        self.clip_value = clip_value
        self.salient = {}
        for name, param in self.before.items():
            values = param[self.masks[name]]
            if param.dtype in (torch.bfloat16, torch.float16):
                values = values.float()
            self.salient[name] = torch.nn.Parameter(values.clone())
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [v for n, v in self.salient.items() if (groups or {}).get(n, 0) == g],
                    **o,
                }
                for g, o in enumerate(options)
            ],
            foreach=False,
            fused=False,
        )

    def step(self, grads: dict[str, Tensor | None]) -> None:
        for name, values in self.salient.items():
            grad = grads[name]
            values.grad = None
            if grad is not None:
                values.grad = grad[self.masks[name]].to(values.dtype)
                if self.clip_value is not None:
                    values.grad.clamp_(-self.clip_value, self.clip_value)
        self.optimizer.step()

    def check(self, params: dict[str, Tensor]) -> None:
        """Salient entries agree; frozen ones have the bits they started with."""
        for name, param in params.items():
            mask, before = self.masks[name], self.before[name]
            assert torch.equal(bits(param)[~mask], bits(before)[~mask]), f"{name}: frozen moved"
            expected = self.salient[name].detach().to(param.dtype)
            rtol, atol = TOLERANCES[param.dtype]
            torch.testing.assert_close(
                param.detach()[mask], expected, rtol=rtol, atol=atol, equal_nan=True
            )
