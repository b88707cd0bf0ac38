"""Triton kernels. A file holds one family; launchers follow `Kernels` in backends/kernels.py."""
