"""What every training run shares: directory and checkpoints, settings, randomness, learners."""
