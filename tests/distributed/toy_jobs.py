"""What the processes of the tests do: importable by name."""

import torch
from toys import toy_objective, weights

from pecker_fast.distill import PeckerTrainer, RunDirectory


def train_toy(ranks, settings, directory=None, until=None):
    """A run of PECKER on a small network without dropout, which would differ between processes."""
    objective = toy_objective(settings, dropout=0.0, dtype=torch.float32)
    place = RunDirectory(directory) if directory is not None and ranks.is_first else None
    trainer = PeckerTrainer(objective, run_directory=place, ranks=ranks)
    first = trainer.iteration
    metrics = []
    for entry in trainer.run():
        metrics.append(entry.losses)
        if entry.iteration == until:
            break
    return {
        "first": first,
        "metrics": metrics,
        "generator": weights(trainer.generator),
        "pseudo_score": weights(trainer.pseudo_score),
        "average": weights(trainer.ema_generator()),
        "mask": trainer.mask.digest,
        "frozen_changed": trainer.verify_frozen().frozen_changed,
    }
