"""Score forgetting distillation: the method itself. It knows nothing of kernels."""
