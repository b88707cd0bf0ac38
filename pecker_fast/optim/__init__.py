"""`MaskedAdamW`, the drop-in for `torch.optim.AdamW` that moves the entries of a mask only."""

from pecker_fast.optim.adamw import MaskedAdamW

__all__ = ["MaskedAdamW"]
