"""The gated unit of a transformer's feed-forward layers: y = hidden * gelu(gate), and its gradient.

One product holds both, hidden before gate, and is all that backward needs. Bytes per bfloat16
element of y: 6 forward, 10 backward; in torch, where gelu(gate) is a tensor of its own that is kept
as well, 10 and 26.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from pecker_fast.kernels.channels_last import as_stored
from pecker_fast.kernels.elements import INTERPRETING, load_as, store_as

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["backward", "forward"]

# 16 elements a thread. A program of the interpreter costs half a millisecond, whatever its size.
_ROWS, _COLUMNS = (64, 1024) if INTERPRETING else (8, 256)


@triton.jit
def _tile(rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """First row, entries within (rows, columns) from there on, the same of the product, valid."""
    blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    first = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    column = (tl.program_id(0) % blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    valid = (row < rows - first)[:, None] & (column < columns)[None, :]
    entry = row[:, None] * columns + column[None, :]
    return first, entry, row[:, None] * (2 * columns) + column[None, :], valid


@triton.jit
def _cdf(gate):
    """Of the normal distribution: gelu(gate) = gate * cdf(gate)."""
    return 0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)


@triton.jit(do_not_specialize=["rows"])
def _geglu_kernel(
    product_ptr, y_ptr, rows, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    first, entry, double_entry, valid = _tile(rows, columns, BLOCK_ROWS, BLOCK_COLUMNS)
    product = as_stored(product_ptr) + first * 2 * columns
    hidden = load_as(product, double_entry, valid, tl.float32)
    gate = load_as(product + columns, double_entry, valid, tl.float32)
    store_as(as_stored(y_ptr) + first * columns, entry, hidden * gate * _cdf(gate), valid)


@triton.jit(do_not_specialize=["rows"])
def _geglu_backward_kernel(
    product_ptr,
    dy_ptr,
    grad_ptr,
    rows,
    columns,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    first, entry, double_entry, valid = _tile(rows, columns, BLOCK_ROWS, BLOCK_COLUMNS)
    product = as_stored(product_ptr) + first * 2 * columns
    grad = as_stored(grad_ptr) + first * 2 * columns
    hidden = load_as(product, double_entry, valid, tl.float32)
    gate = load_as(product + columns, double_entry, valid, tl.float32)
    dy = load_as(as_stored(dy_ptr) + first * columns, entry, valid, tl.float32)
    cdf = _cdf(gate)
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    store_as(grad, double_entry, dy * gate * cdf, valid)
    store_as(grad + columns, double_entry, dy * hidden * (cdf + gate * density), valid)


def forward(product: Tensor, y: Tensor) -> None:
    """The unit: hidden * gelu(gate).

    Args:
        product: (..., 2 C) float32, bfloat16 or float16, contiguous: hidden, then gate.
        y: (..., C) like it, contiguous, written.
    """
    _launch(_geglu_kernel, y, product, y)


def backward(product: Tensor, dy: Tensor, grad: Tensor) -> None:
    """The gradient of `product`.

    Args:
        product: (..., 2 C), as forward had it.
        dy: (..., C) of any of the three dtypes, contiguous.
        grad: Like `product`, written.
    """
    _launch(_geglu_backward_kernel, dy, product, dy, grad)


def _launch(kernel: Any, like: Tensor, *tensors: Tensor) -> None:
    """One program for each tile of (rows, columns) elements of `like`."""
    columns = like.shape[-1]
    rows = like.numel() // max(columns, 1)
    grid = (triton.cdiv(rows, _ROWS) * triton.cdiv(columns, _COLUMNS),)
    if grid[0]:
        kernel[grid](
            *tensors,
            rows,
            columns,
            BLOCK_ROWS=_ROWS,
            BLOCK_COLUMNS=_COLUMNS,
            num_warps=4,
            enable_fp_fusion=True,
        )
