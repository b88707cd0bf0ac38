"""Several processes, one run: who does which rows, and what is sent between them."""

from pecker_fast.distributed.ranks import Ranks
from pecker_fast.distributed.reducer import GradientReducer

__all__ = ["GradientReducer", "Ranks"]
