"""The U-Net's blocks, fused: the same numbers from fewer passes over memory."""
