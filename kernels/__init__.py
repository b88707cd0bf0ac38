"""Triton kernels. A file holds one family.

Launchers of the optimizer and of masks follow `Kernels` in backends/kernels.py; nn/fused.py calls
those of the U-Net's blocks.
"""
