"""The C++ kernels of csrc/cpu, behind the reference's signatures."""

from __future__ import annotations
