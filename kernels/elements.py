"""How every kernel reads and writes elements: addresses from int64 tables, bfloat16 as its bits.

bfloat16 is loaded and stored as int16 and converted here: compiled code by the device's own
instruction, interpreted code in integers, since Triton's interpreter truncates. The bits are the
same, but for those of NaN. Also the options all launches share.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

__all__ = [
    "INTERPRETING",
    "IN_SOFTWARE",
    "OPTIONS",
    "PTX",
    "SLOTS_PER_BLOCK",
    "STORED",
    "load_as",
    "offsets_of",
    "pointer_to",
    "present",
    "round_trip",
    "store_as",
    "valid_slots",
]

# Read by Triton when a kernel is decorated, so it cannot change later.
INTERPRETING: bool = knobs.runtime.interpret

# What a kernel may ask of it. PTX: instructions of NVIDIA's cards can be named.
IN_SOFTWARE: tl.constexpr = tl.constexpr(INTERPRETING)
PTX: tl.constexpr = tl.constexpr(not INTERPRETING and torch.version.hip is None)

# Slots a program covers. In the interpreter it costs half a millisecond, whatever its size.
SLOTS_PER_BLOCK = 65536 if INTERPRETING else 1024

# No contraction to fused multiply-add: the CPU backend's bits.
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}

# How a dtype is stored, as the kernels' compile-time arguments name it.
STORED: dict[torch.dtype, tl.dtype] = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.int16,
    torch.float16: tl.float16,
}


@triton.jit
def pointer_to(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The int64 address as a pointer; ALIGNED promises 16 bytes, which lets accesses be wide."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def valid_slots(slot, end, WHOLE: tl.constexpr):
    """Which lanes work. WHOLE: all, in a form that does not keep accesses from being wide."""
    if WHOLE:
        valid = tl.full(slot.shape, True, tl.int1)
    else:
        valid = slot < end
    return valid


@triton.jit
def present(address, slot):
    """Whether there is a tensor at all, for every lane: comparing blocks keeps masks boolean."""
    return tl.full(slot.shape, address, tl.int64) != 0


@triton.jit
def offsets_of(address, slot, valid, ALIGNED: tl.constexpr):
    """Where the slots lie in a dense tensor, int64. Address 0: slot i is element i."""
    pointer = pointer_to(address, tl.int32, ALIGNED)
    some = present(address, slot)
    offset = tl.load(pointer + slot, mask=valid & some, other=0).to(tl.int64)
    return tl.where(some, offset, slot)


@triton.jit
def _widen(bits):
    """The float32 with a bfloat16's bits (int16)."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _round_bfloat16(value):
    """A float32 as bfloat16 bits (int16), rounded to nearest even; NaN becomes a quiet NaN."""
    if IN_SOFTWARE:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        stored = tl.where(value == value, rounded, 0x7FC0).to(tl.uint16)
    else:
        stored = value.to(tl.bfloat16)
    return stored.to(tl.int16, bitcast=True)


@triton.jit
def load_as(pointer, offset, valid, T: tl.constexpr):
    """Elements at `offset` in the type of the arithmetic, 0 where not valid."""
    value = tl.load(pointer + offset, mask=valid, other=0)
    if value.dtype == tl.int16:
        value = _widen(value)
    return value.to(T)


@triton.jit
def store_as(pointer, offset, value, valid):
    """Store values, rounded to nearest even in the type of the elements."""
    DTYPE: tl.constexpr = pointer.dtype.element_ty
    if DTYPE == tl.int16:
        value = _round_bfloat16(value.to(tl.float32))
    tl.store(pointer + offset, value.to(DTYPE), mask=valid)


@triton.jit
def round_trip(value, DTYPE: tl.constexpr):
    """A float32 rounded to the stored type DTYPE, as float32."""
    if DTYPE == tl.int16:
        rounded = _widen(_round_bfloat16(value))
    else:
        rounded = value.to(DTYPE).to(tl.float32)
    return rounded
