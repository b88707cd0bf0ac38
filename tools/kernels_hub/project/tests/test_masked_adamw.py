"""A masked step is torch's AdamW on the salient entries, and moves no other."""

import masked_adamw
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # there in Triton's interpreter


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_step(dtype, masked):
    torch.manual_seed(0)
    params = [torch.randn(shape, dtype=dtype, device=DEVICE) for shape in ((33, 65), (7,))]
    masks = [torch.rand(p.shape, device=DEVICE) < (0.3 if masked else 1.1) for p in params]
    before = [p.clone() for p in params]
    plain = [p[m].float() for p, m in zip(params, masks, strict=True)]
    mask = dict(zip(params, masks, strict=True)) if masked else None
    ours = masked_adamw.MaskedAdamW(
        params, lr=0.1, weight_decay=0.1, mask=mask, master_weights=True, backend="triton"
    )
    theirs = torch.optim.AdamW(plain, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        for param, compact, where in zip(params, plain, masks, strict=True):
            param.grad = torch.randn_like(param)
            compact.grad = param.grad[where].float()
        ours.step()
        theirs.step()
    for param, old, compact, where in zip(params, before, plain, masks, strict=True):
        rounded = 1e-5 if dtype == torch.float32 else 2**-7  # one unit in the last place
        torch.testing.assert_close(param[where].float(), compact, rtol=rounded, atol=1e-6)
        assert torch.equal(param[~where], old[~where])
