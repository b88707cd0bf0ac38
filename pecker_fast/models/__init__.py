"""Networks on disk, and the published U-Net. Nothing here knows of masks."""

from pecker_fast.models import ddpm_fused as _ddpm_fused  # noqa: F401 - lets `fuse_` know DDPMUNet
from pecker_fast.models.folder import ModelFolder

__all__ = ["ModelFolder"]
