"""Networks on disk and the training of small teachers. Nothing here knows of masks or kernels."""

from pecker_fast.models.folder import ModelFolder

__all__ = ["ModelFolder"]
