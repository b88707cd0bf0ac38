"""Exact global top-k over the saliency scores of a network: ours against what people run today.

    python benchmarks/topk.py                       # CIFAR-10 DDPM shapes, some minutes
    python benchmarks/topk.py --preset tiny         # seconds
    python benchmarks/topk.py --device cuda --preset sd15

Every provider's selection is compared with an independent one (threshold, then ties by position) on
that very input before it is timed; one that selects other scores gets no time. torch.topk and
SalUn's argsort promise no order among equal scores, so theirs may differ there.

Shares are of the copy bandwidth measured in the same process, for what any selection must move:
each score read once, each position written once. On a card peak memory is what a first call
allocates, the selection itself included (4 bytes an entry in ours, 8 in the others').
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from bench import Builder, Case, Provider, Setup, command, make_parser
from inputs import PRESETS, random_scores, shapes
from timing import peak_memory
from torch import Tensor

from pecker_fast import backends

Scores = Sequence[Tensor]
Select = Callable[[Scores, int], Sequence[Tensor]]
Dense = Callable[[Sequence[Tensor], Scores], Tensor]


# What is timed: from the scores to the selection each of them makes.


def torch_topk(scores: Scores, k: int) -> list[Tensor]:
    """Positions in the concatenation, unordered. Splitting them by parameter is not counted."""
    return [torch.topk(_joined(scores), k, sorted=False).indices]


def salun(scores: Scores, k: int) -> list[Tensor]:
    """Unlearn-Saliency's mask: ranks by two argsorts of everything, then int64 0/1 tensors."""
    ranks = torch.argsort(torch.argsort(-_joined(scores)))
    parts = ranks.split([score.numel() for score in scores])
    masks = []
    for score, part in zip(scores, parts, strict=True):
        mask = torch.zeros_like(part)
        mask[part < k] = 1
        masks.append(mask.reshape(score.shape))
    return masks


# Whether it is right: any selection as a bool tensor over the concatenation.


def _joined(tensors: Scores) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def of_positions(selection: Scores, scores: Scores) -> Tensor:
    """Of positions in each parameter, as every backend of ours selects."""
    selected = [torch.zeros_like(score.flatten(), dtype=torch.bool) for score in scores]
    for one, positions in zip(selected, selection, strict=True):
        one[positions.long()] = True
    return torch.cat(selected)


def exact_selection(scores: Scores, k: int) -> Tensor:
    """What must be selected: all above the k-th largest; of those equal to it the first ones."""
    everything = _joined(scores)
    threshold = torch.topk(everything, k, sorted=False).values.min()
    selected = everything > threshold
    equal = (everything == threshold).nonzero().flatten()
    selected[equal[: k - int(selected.sum())]] = True
    return selected


def agree(found: Tensor, expected: Tensor, scores: Scores, ties: bool) -> bool:
    """Whether a selection is the right one; with `ties` others among equal scores count, too."""
    if torch.equal(found, expected) or not ties:
        return torch.equal(found, expected)
    everything = _joined(scores)
    only_found, only_expected = everything[found & ~expected], everything[expected & ~found]
    return torch.equal(only_found.sort().values, only_expected.sort().values)


# Name -> selection, and what makes a bool tensor of it.
_BASELINES: dict[str, tuple[Select, Dense]] = {
    "torch.topk": (torch_topk, lambda found, scores: of_positions(found, [_joined(scores)])),
    "salun_double_argsort": (salun, lambda found, _: _joined(found).bool()),
}
_REFERENCE = "torch.sort"


def build(select: Select, dense: Dense, scores: Scores, k: int, ties: bool = False) -> Provider:
    """The gate and the memory of one provider, in a first call."""
    selection, peak = peak_memory(lambda: select(scores, k), str(scores[0].device))
    match = agree(dense(selection, scores), exact_selection(scores, k), scores, ties)
    numel = sum(score.numel() for score in scores)
    columns = {"numel": numel, "peak_extra_bytes": peak, "bytes_moved": 4 * (numel + k)}
    return Provider(partial(select, scores, k), match, columns)


@dataclass(frozen=True)
class TopkCase(Case):
    """One density of one network's scores, which have heavy tails."""

    benchmark = "topk"
    roof = "copy_gb_per_s"

    density: float = 0.1

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """The baselines, the reference, and ours on every backend."""
        scores = list(random_scores(shapes(self.preset), setup.device, seed=0).values())
        k = max(1, round(self.density * sum(score.numel() for score in scores)))
        builders: dict[str, Builder] = {
            name: partial(build, *how, scores, k, ties=True) for name, how in _BASELINES.items()
        }
        ours = {_REFERENCE: "reference"}
        ours |= {f"pecker_fast[{name}]": name for name in setup.backends if name != "reference"}
        for name, backend in ours.items():
            select = backends.select(backend, setup.device).select_topk
            builders[name] = partial(build, select, of_positions, scores, k)
        return builders


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["ddpm_cifar10"])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.1, 0.01])
    options = parser.parse_args(argv)
    cases = [TopkCase(*case) for case in itertools.product(options.preset, options.densities)]
    return command(options, cases)


if __name__ == "__main__":
    sys.exit(main())
