"""Copies between tensors and vectors of their salient entries: what the compiled backends share.

A backend brings the launch. What its kernel cannot take (other dtypes, holes, offsets beyond int32)
goes to the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from pecker_fast.backends import reference
from pecker_fast.backends.fitting import check_vector, slot_offsets
from pecker_fast.backends.kernels import Operation
from pecker_fast.backends.work import PARAM_DTYPES

__all__ = ["Row", "SalientOperations"]


_COPIES = ("gather", "scatter", "swap")


class Row(NamedTuple):
    """A tensor and its salient entries, as a kernel takes them."""

    dense: Tensor  # any of PARAM_DTYPES
    offsets: Tensor | None  # (nnz,) int32 into the storage; None: slot i is element i
    compact: Tensor  # (nnz,) float32 or float64, contiguous; to copy also a half like `dense`


class SalientOperations:
    """Gather, scatter, exchange and average. `reference` documents them."""

    def _launch(self, operation: Operation, rows: list[Row], decay: float) -> None:
        """Run `kernels.Kernels.salient` on all rows."""
        raise NotImplementedError

    def gather_salient_(
        self,
        params: Sequence[Tensor],
        indices: Sequence[Tensor | None],
        out: Sequence[Tensor],
        accumulate: bool = False,
    ) -> None:
        """As `reference.gather_salient_`, in one launch."""
        rest = self._run("gather_add" if accumulate else "gather", params, indices, out)
        reference.gather_salient_(*rest, accumulate)
        increment_version(list(out))

    def scatter_salient_(
        self,
        params: Sequence[Tensor],
        indices: Sequence[Tensor | None],
        values: Sequence[Tensor],
    ) -> None:
        """As `reference.scatter_salient_`, in one launch."""
        reference.scatter_salient_(*self._run("scatter", params, indices, values))
        increment_version(list(params))

    def swap_salient_(
        self,
        params: Sequence[Tensor],
        indices: Sequence[Tensor | None],
        values: Sequence[Tensor],
    ) -> None:
        """As `reference.swap_salient_`, in one launch."""
        reference.swap_salient_(*self._run("swap", params, indices, values))
        increment_version([*params, *values])

    def ema_salient_(
        self,
        averages: Sequence[Tensor],
        params: Sequence[Tensor],
        indices: Sequence[Tensor | None],
        decay: float,
    ) -> None:
        """As `reference.ema_salient_`, in one launch."""
        rest_params, rest_indices, rest_averages = self._run(
            "ema", params, indices, averages, decay
        )
        reference.ema_salient_(rest_averages, rest_params, rest_indices, decay)
        increment_version(list(averages))

    def _run(
        self,
        operation: Operation,
        dense: Sequence[Tensor],
        indices: Sequence[Tensor | None],
        compact: Sequence[Tensor],
        decay: float = 0.0,
    ) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
        """Launch for what the kernel can take.

        Returns:
            The dense tensors, indices and vectors that it cannot take.
        """
        rows: list[Row] = []
        rest: tuple[list[Tensor], list[Tensor | None], list[Tensor]] = ([], [], [])
        for tensor, positions, vector in zip(dense, indices, compact, strict=True):
            check_vector(operation, tensor, positions, vector)
            offsets = slot_offsets(positions, tensor)
            if (
                (positions is not None or tensor.is_contiguous())
                and (offsets is None or offsets.dtype == torch.int32)
                and tensor.dtype in PARAM_DTYPES
                and (
                    vector.dtype in (torch.float32, torch.float64)
                    or (vector.dtype == tensor.dtype and operation in _COPIES)
                )
                and vector.is_contiguous()
            ):
                rows.append(Row(tensor, offsets, vector))
            else:
                rest[0].append(tensor)
                rest[1].append(positions)
                rest[2].append(vector)
        if rows:
            self._launch(operation, rows, decay)
        return rest
