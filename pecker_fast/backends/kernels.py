"""The raw launches that a device backend consists of, and the tables they read.

`device.DeviceBackend` makes a backend of anything that follows `Kernels`. All tensors are on one
device. Nothing here synchronizes, allocates or checks; the caller has made the device current.

Tables are int64 and hold raw addresses, 0 for what is absent. `blocks` is a (B, 2) int32 work list:
(row of the table, chunk), where chunk c covers slots [c * slots_per_block, ...) up to nnz. Offsets
are int32 and lead from a slot to an element; 0 means that slot i is element i.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from pecker_fast.backends.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from torch import Tensor

    from pecker_fast.backends.work import Hyperparameters

__all__ = ["DIGIT_BITS", "ROW_NUMBERS", "Kernels", "Operation", "StepTables"]

Operation: TypeAlias = Literal["gather", "gather_add", "scatter", "swap", "ema"]
ROW_NUMBERS = 12  # numbers in a row of scalars: struct DeviceRow in csrc/adamw_math.h
DIGIT_BITS = 11  # of a key that one histogram looks at


@dataclass
class StepTables:
    """What `advance` reads and writes."""

    entries: Tensor  # (n, 4) int64: group, first row, number of rows, 1 for float64 parameters
    host_entries: Tensor  # the same on the host
    starts: Tensor  # (R,) float32: the step count at which a row's entries became salient
    steps: Tensor  # (n,) float32, counted up in place
    # (R, 12) float64 storage: struct DeviceRow, float32 (at the start of the row) or float64.
    rows: Tensor
    grads: Tensor  # (n,) int64, for addresses of gradients
    uploads: Uploads = field(default_factory=Uploads)  # of kernels that need them


class Kernels(Protocol):
    """What csrc/cuda/kernels.h and kernels/*.py provide."""

    @property
    def slots_per_block(self) -> int:
        """Slots a block of the update and of the copies covers."""
        ...

    def items_per_tile(self, grouped: bool) -> int:
        """Items (scores, or groups of them) a tile of top-k covers."""
        ...

    # ---- the step

    def advance(
        self,
        tables: StepTables,
        addresses: np.ndarray,
        groups: Sequence[Hyperparameters],
        found_inf: Tensor | None,
    ) -> Tensor:
        """Count the step and compute the scalars of every entry that has a gradient.

        Args:
            tables: of the entries.
            addresses: (n,) int64 of the gradients; 0: the entry's count and rows stay as they are.
            groups: what each group says.
            found_inf: () float32: if above 0, do nothing.

        Returns:
            (n,) int64 the addresses, on the device.
        """
        ...

    def masked_adamw(
        self,
        param_dtype: torch.dtype,
        grad_dtype: torch.dtype,
        extras: bool,
        tensors: Tensor,
        grads: Tensor,
        rows: Tensor,
        blocks: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Update the slots of `blocks`, whose entries all have these dtypes.

        Args:
            param_dtype: of the parameters.
            grad_dtype: of the gradients: the same, or float32 for bfloat16 and float16 parameters,
                or bfloat16 or float16 for float32 parameters.
            extras: some entry has a max_exp_avg_sq, a master or start classes.
            tensors: (n, 10): param, its offsets, the gradient's offsets, exp_avg, exp_avg_sq,
                max_exp_avg_sq, master, start_class (addresses), first row, nnz.
            grads: (n,) addresses; 0: nothing is done.
            rows: from `advance`.
            blocks: (B, 2) work list.
            grad_scale: () float32: gradients are divided by it and written back.
            found_inf: () float32: if above 0, do nothing.
        """
        ...

    # ---- salient entries

    def salient(
        self,
        operation: Operation,
        dense_dtype: torch.dtype,
        compact_dtype: torch.dtype,
        tensors: Tensor,
        blocks: Tensor,
        decay: float,
    ) -> None:
        """Copy, exchange or average between dense tensors and compact vectors.

        Args:
            operation: "gather" to the vector, "gather_add", "scatter" from it, "swap", or "ema":
                vector = lerp(vector, dense, 1 - decay).
            dense_dtype: any of the four.
            compact_dtype: float32 or float64; for the copies also the other, if a half.
            tensors: (n, 4): dense, offsets, compact (addresses), nnz.
            blocks: (B, 2) work list.
            decay: of "ema".
        """
        ...

    def salient_one(
        self,
        operation: Operation,
        dense: Tensor,
        offsets: Tensor | None,
        compact: Tensor,
        decay: float,
    ) -> None:
        """The same for one tensor, without a table."""
        ...

    def sum_squares(
        self, dtype: torch.dtype, tensors: Tensor, blocks: Tensor, partials: Tensor
    ) -> None:
        """(B,) float64 sums of squares per block. `tensors` is (n, 2): address, nnz."""
        ...

    # ---- exact top-k. `tensors` is (n, 4): address, items, numel, length. With length 1 an item is
    # a score. Else item i is the group of scores [i * length, ...), ranked by its mean in float64
    # (32 interleaved partial sums, then a tree) and weighing as much as it has scores. `tiles` is
    # (T, 2) int32: (tensor, tile). `dtype` is that of the scores, float32 or float64. `state` is
    # (4,): prefix, prefix_mask, wanted, first tensor with a NaN. Keys are the order-preserving
    # integers of csrc/cuda/topk.h.

    def sample(self, dtype: torch.dtype, tensors: Tensor, ends: Tensor, out: Tensor) -> None:
        """One score from each of len(out) equal strides. `ends`: (n,) cumulative items."""
        ...

    def histogram(
        self,
        dtype: torch.dtype,
        grouped: bool,
        tensors: Tensor,
        tiles: Tensor,
        state: Tensor,
        shift: int,
        bits: int,
        bins: Tensor,
    ) -> None:
        """Add the items under the prefix to (2048,) `bins` by the digit at `shift`, weighted."""
        ...

    def pick(self, bins: Tensor, state: Tensor, shift: int, bits: int) -> None:
        """Fix the digit of the threshold and empty the bins.

        From the highest bin down, bins are passed while all in them fit into `wanted`; the first
        that does not fit holds the threshold, bin 0 if all fit. `wanted` loses what was passed.
        """
        ...

    def collect(
        self,
        dtype: torch.dtype,
        tensors: Tensor,
        tiles: Tensor,
        bracket: Tensor,
        above: Tensor,
        equal: Tensor,
        keys: Tensor,
        key_tiles: Tensor,
        counters: Tensor,
    ) -> None:
        """Count per tile what is above (2,) `bracket` and keep the scores inside, up to capacity.

        `counters` is (2,): kept scores, which may exceed the capacity; first tensor with a NaN.
        Where the ends of the bracket are equal nothing is kept and `equal` counts what is inside.
        """
        ...

    def settle(
        self,
        dtype: torch.dtype,
        keys: Tensor,
        key_tiles: Tensor,
        count: int,
        state: Tensor,
        above: Tensor,
        equal: Tensor,
    ) -> None:
        """Add the kept scores to their tiles' counts: above the threshold, equal to it."""
        ...

    def count(
        self,
        dtype: torch.dtype,
        grouped: bool,
        tensors: Tensor,
        tiles: Tensor,
        state: Tensor,
        above: Tensor,
        equal: Tensor,
    ) -> None:
        """(T,) weights above the threshold and equal to it."""
        ...

    def trim(
        self,
        dtype: torch.dtype,
        tensors: Tensor,
        tiles: Tensor,
        state: Tensor,
        equal_before: Tensor,
        equal: Tensor,
    ) -> None:
        """Lower `wanted` to what whole groups, taken in order while they fit, make of it."""
        ...

    def write(
        self,
        dtype: torch.dtype,
        grouped: bool,
        tensors: Tensor,
        tiles: Tensor,
        state: Tensor,
        above_before: Tensor,
        equal_before: Tensor,
        out: Tensor,
    ) -> None:
        """Write the positions of the taken scores, in order, to int32 `out`."""
        ...
