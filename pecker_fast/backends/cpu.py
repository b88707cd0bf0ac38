"""The C++ kernels of csrc/cpu, behind the reference's signatures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pecker_fast import _C
from pecker_fast.backends.reference import (  # noqa: F401 - until the kernels are there
    ema_salient_,
    gather_salient_,
    masked_adamw_,
    prepare,
    scatter_salient_,
)
from pecker_fast.backends.topk import name_of, nan_error, prepare_scores
from pecker_fast.errors import PeckerError


def select_topk(
    scores: Sequence[Tensor], k: int, names: Sequence[str] | None = None
) -> list[Tensor]:
    """Positions of the k largest scores by radix selection; arguments as in the reference.

    Contiguous float32 and float64 scores are read in place: nothing is concatenated, and beside
    the result it takes less than 1 MiB plus 50 KiB per thread for a thousand million scores.
    """
    flat = prepare_scores(scores, k, names)
    if flat[0].device.type != "cpu":
        raise PeckerError(
            f"select_topk: the cpu backend reads CPU tensors, got {name_of(0, names)} on "
            f"{flat[0].device}; use the reference backend"
        )
    plan = _C.TopkPlan(
        [tensor.data_ptr() for tensor in flat],
        [tensor.numel() for tensor in flat],
        k,
        double_scores=flat[0].dtype == torch.float64,
        threads=torch.get_num_threads(),
    )
    if plan.nan_tensor >= 0:
        raise nan_error(plan.nan_tensor, names)
    positions = [torch.empty(count, dtype=torch.int32) for count in plan.counts]
    plan.write([tensor.data_ptr() for tensor in positions])
    return positions
