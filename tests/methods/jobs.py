"""What test_processes.py runs in several processes; importable by name there."""

from small import small_objective
from toys import weights

from pecker_fast.distributed import GradientReducer
from pecker_fast.methods.trainer import BaselineTrainer
from pecker_fast.runs.directory import RunDirectory


def train_small(ranks, method, settings, directory=None, until=None, dropout=0.0):
    """A short run; what came of it, and what each step sent."""
    sent = []
    finish = GradientReducer.finish

    def counted(reducer):
        sent.append(reducer.bytes_per_step)
        finish(reducer)

    GradientReducer.finish = counted
    place = RunDirectory(directory) if directory is not None and ranks.is_first else None
    trainer = BaselineTrainer(
        small_objective(settings, method, dropout=dropout), run_directory=place, ranks=ranks
    )
    first = trainer.iteration
    losses = []
    for metrics in trainer.run():
        losses.append(metrics.losses)
        if metrics.iteration == until:
            break
    GradientReducer.finish = finish
    if place is not None:
        place.close()
    return {
        "first": first,
        "losses": losses,
        "network": weights(trainer.network),
        "result": weights(trainer.erased_network()),
        "mask": trainer.mask.digest,
        "salient": trainer.mask.nnz,
        "numel": trainer.mask.numel,
        "frozen_changed": trainer.verify_frozen().frozen_changed,
        "sent": sent,
    }
