"""Several processes, one run: who does which rows, and what is sent between them."""

from pecker_fast.distributed.gradients import GradientReducer
from pecker_fast.distributed.ranks import Ranks

__all__ = ["GradientReducer", "Ranks"]
