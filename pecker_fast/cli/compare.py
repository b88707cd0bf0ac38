"""`pecker-fast compare`: one table and one page of plots of many runs."""

from __future__ import annotations

from pathlib import Path

import click

from pecker_fast.cli.common import INPUT, PATH, echo
from pecker_fast.errors import PeckerError

__all__ = ["compare"]


@click.command(
    short_help="Many runs in one table and one page of plots.",
    epilog="""\b
Examples:
    pecker-fast compare RUN1 RUN2 --out comparison
    pecker-fast compare pecker sfd salun original.json --out comparison

\b
A RUN is a folder that `erase --out` or `train-teacher --out` wrote, or a file of `evaluate --json`,
e.g. of the original model. Figures in RUN/evaluate.json count more than the run's own:
    pecker-fast evaluate RUN --classifier CLF --forget CLASS --json RUN/evaluate.json

\b
Figures that rest on other judges, other numbers of images or other real images are marked.
""",
)
@click.argument("runs", metavar="RUN...", type=INPUT, nargs=-1, required=True)
@click.option(
    "--out",
    type=PATH,
    required=True,
    help="Folder for comparison.html, comparison.csv and curves.csv; made if need be.",
)
@click.option("--force", is_flag=True, help="Replace a comparison that is there.")
def compare(runs: tuple[Path, ...], out: Path, force: bool) -> None:
    """Put runs that forget the same class side by side, as HTML and as CSV."""
    from pecker_fast.evaluate.comparison import FILES, Comparison, write_comparison

    if out.exists() and not out.is_dir():
        raise PeckerError(f"{out}: is a file; give --out the name of a folder")
    there = [name for name in FILES if (out / name).exists()]
    if there and not force:
        raise PeckerError(f"{out / there[0]}: exists; add --force to replace it")
    from pecker_fast.evaluate.comparison_reading import read_runs

    comparison = Comparison(read_runs(runs))
    out.mkdir(parents=True, exist_ok=True)
    write_comparison(comparison, out)
    for title, letters in comparison.notes().items():
        listed = "; ".join(f"{letter}: {words}" for words, letter in letters.items())
        echo(f"note: {title}: not comparable where letters differ. {listed}.")
    for sentence in comparison.unfinished():
        echo(f"note: {sentence}")
    for name in FILES:
        echo(out / name)
