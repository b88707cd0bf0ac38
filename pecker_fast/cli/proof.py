"""The proof that ends every erasure: what the mask froze has the bits that it had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import click
from torch import nn

from pecker_fast.cli.run_files import FROZEN_NAME
from pecker_fast.distributed import Ranks
from pecker_fast.files import write_text
from pecker_fast.masks.verify import FrozenCheck

__all__ = ["conclude", "prove_frozen"]


class Provable(Protocol):
    """What a trainer is to its proof."""

    def verify_frozen(self, network: nn.Module | None = None) -> FrozenCheck:
        """Compare a network with the start, bit by bit."""


def prove_frozen(trainer: Provable, network: nn.Module, out: Path, ranks: Ranks) -> FrozenCheck:
    """Compare the result of a run with its start and keep what came of it in frozen.json.

    Args:
        trainer: of the run, finished.
        network: the result.
        out: the run directory.
        ranks: the processes that share the run, all of which make this call.
    """
    frozen = trainer.verify_frozen(network)
    text = json.dumps(frozen.to_dict(), indent=2) + "\n"
    ranks.first(lambda: write_text(out / FROZEN_NAME, text))
    return frozen


def conclude(frozen: FrozenCheck, out: Path) -> None:
    """Say what was compared, at the end of a command; for the first process.

    Raises:
        FrozenChangedError: A frozen entry has changed.
    """
    click.echo(frozen.sentence())
    frozen.require_unchanged(out)
