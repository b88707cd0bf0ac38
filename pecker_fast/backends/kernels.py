"""The raw launches that a device backend consists of, and the tables they read.

`device.DeviceBackend` makes a backend of anything that follows `Kernels`. All tensors are on one
device. Nothing here synchronizes, allocates or checks; the caller has made the device current.

Tables are int64 and hold raw addresses, 0 for what is absent. `blocks` is a (B, 2) int32 work list:
(row of the table, chunk), where chunk c covers slots [c * slots_per_block, ...) up to nnz. Offsets
are int32 and lead from a slot to an element; 0 means that slot i is element i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from pecker_fast.backends.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from pecker_fast.backends.work import Hyperparameters

__all__ = ["DIGIT_BITS", "LAUNCHES", "ROW_NUMBERS", "Kernels", "Operation", "StepTables"]

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


Launch: TypeAlias = Callable[..., None]

LAUNCHES = {
    "salient": "code dtype dtype address rows value",
    "sum_squares": "dtype address rows address",
    "sample": "dtype address rows rows",
    "histogram": "dtype value address rows address value value address",
    "pick": "address address value value",
    "collect": "dtype address rows address address address rows address address",
    "settle": "dtype address address value address address address",
    "count": "dtype value address rows address address address",
    "trim": "dtype address rows address address address",
    "write": "dtype value address rows address address address address",
}
"""Launches whose arguments are all of these kinds, in the order of the launchers in kernels/.

dtype and code stand for a number in csrc/cuda/kernels.h, address for where a tensor lies, rows for
that and its length; a value goes as it is.
"""


class Kernels(Protocol):
    """What csrc/cuda/kernels.h and kernels/*.py provide.

    The arguments are those of the launchers of these names in kernels/adamw.py, kernels/salient.py,
    kernels/topk_select.py and kernels/topk_write.py, which say what each is.
    """

    @property
    def slots_per_block(self) -> int:
        """Slots a block of the update and of the copies covers."""
        ...

    def items_per_tile(self, grouped: bool) -> int:
        """Items (scores, or groups of them) a tile of top-k covers."""
        ...

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

    @property
    def masked_adamw(self) -> Launch:
        """Update the salient entries of everything of one pair of types."""
        ...

    @property
    def salient_one(self) -> Launch:
        """As `salient` for one tensor, without a table."""
        ...

    salient: Launch  # copies between dense tensors and compact vectors
    sum_squares: Launch

    # Exact top-k. `tensors` is (n, 4): address, items, numel, length. With length 1 an item is a
    # score. Else item i is the group of scores [i * length, ...), ranked by its mean in float64
    # (32 interleaved partial sums, then a tree) and weighing as much as it has scores. `tiles` is
    # (T, 2) int32: (tensor, tile). `dtype` is that of the scores, float32 or float64. `state` is
    # (4,): prefix, prefix_mask, wanted, first tensor with a NaN. Keys are the order-preserving
    # integers of csrc/cuda/topk.h.
    sample: Launch
    histogram: Launch
    pick: Launch
    collect: Launch
    settle: Launch
    count: Launch
    trim: Launch
    write: Launch
