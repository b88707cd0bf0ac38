"""Triton kernels. A file holds one kernel family; its launcher has the reference's signature."""
