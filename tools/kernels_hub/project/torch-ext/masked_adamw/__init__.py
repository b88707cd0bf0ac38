"""AdamW on the entries of a mask: a drop-in for torch.optim.AdamW in two Triton launches a step."""

from .backends import select as select_backend
from .optim.adamw import MaskedAdamW

__all__ = ["MaskedAdamW", "select_backend"]
