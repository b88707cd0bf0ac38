"""pecker_fast: erase a class from a diffusion model, and prove it."""
