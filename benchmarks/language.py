"""A language model fine-tuned under a mask, in full, and with PEFT's LoRA and SHiRA.

    python benchmarks/language.py --threads 1 --json benchmarks/results/language-cpu.json
    python benchmarks/language.py --list --only method=saliency

A Llama of 2 M parameters, byte by byte, learns the prose of Python's manual (`pydoc_data.topics`)
once; that is the base of every run. Then it learns Python code (the sources of `asyncio`): all
weights, or as many values as LoRA has at a rank. Masks choose among the entries of the matrices
that LoRA and SHiRA work on. SHiRA takes nn.Linear only, hence a Llama and not a GPT-2.

Every method has three learning rates. The best on a seed and a text of their own, by the loss on
the code, is the one that five seeds run with. A seed is the order of the batches, the random mask,
and LoRA's first values. The file is gone on with: cells that it has are not run again.

PEFT is no dependency: pip install peft.
"""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
from bench import Builder, Case, Provider, Setup, asked_for, command, make_parser
from language_model import (
    WIDTH,
    base_model,
    batches,
    held_out,
    loss_of,
    make_model,
    step,
    train,
)
from rows import Row
from safetensors.torch import save_file
from timing import peak_memory
from torch import nn

from pecker_fast import MaskedAdamW, SaliencyMask, saliency_scores, save_patch
from pecker_fast.errors import PeckerError
from pecker_fast.masks.criteria import magnitude
from pecker_fast.masks.verify import check_frozen

__all__ = ["CostCase", "TuneCase", "cells", "main"]

STEPS, BATCH = 80, 2  # of fine-tuning
RANKS = (2, 16)  # densities of about .01 and .1
SEEDS = range(5)
TUNING_SEED = 99
# At the larger rank; at another, times the ratio of the two to a power.
RATES = {
    "full": ((3e-4, 1e-3, 3e-3), 0.0),
    "LoRA": ((1e-3, 3e-3, 1e-2), 0.5),
    "SHiRA": ((3e-3, 1e-2, 3e-2), 1.0),
    "random": ((3e-3, 1e-2, 3e-2), 1.0),
    "saliency": ((1e-3, 3e-3, 1e-2), 0.5),
    "magnitude": ((3e-3, 1e-2, 3e-2), 1.0),
}
METHODS = tuple(RATES)
PEFT = ("LoRA", "SHiRA")
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# ---- methods


@dataclass
class Learner:
    """A model and what trains it; the mask is ours alone."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    mask: SaliencyMask | None = None

    @property
    def trained_values(self) -> int:
        """How many may move."""
        if self.mask is not None:
            return self.mask.nnz
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that LoRA, SHiRA and masks work on; all others stop learning."""
    for name, param in model.named_parameters():
        param.requires_grad_("_proj." in name)
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def values_of(rank: int, weights: dict[str, nn.Parameter]) -> int:
    """So many has LoRA, and SHiRA."""
    return sum(rank * sum(weight.shape) for weight in weights.values())


def start(method: str, model: nn.Module, rank: int, seed: int, release: bool = False) -> Learner:
    """A method at its beginning; the rate is set before every step."""
    adam = partial(torch.optim.AdamW, weight_decay=0.0, fused=True)
    if method == "full":
        return Learner(model, adam(model.parameters()))
    if method in PEFT:
        import peft

        torch.manual_seed(seed)
        if method == "LoRA":
            config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=MATRICES)
        else:
            config = peft.ShiraConfig(r=rank, random_seed=seed, target_modules=MATRICES)
        model = peft.get_peft_model(model, config)
        return Learner(model, adam([p for p in model.parameters() if p.requires_grad]))
    weights = matrices(model)
    density = values_of(rank, weights) / sum(weight.numel() for weight in weights.values())
    if method == "random":
        mask = SaliencyMask.random(model, density, seed)
    elif method == "magnitude":
        mask = SaliencyMask.from_scores(magnitude(model), density)
    else:
        seen = zip(range(8), batches("code to learn", BATCH, seed), strict=False)
        losses = (partial(loss_of, model, ids) for _, ids in seen)
        mask = SaliencyMask.from_scores(saliency_scores(model, losses), density)
    optimizer = MaskedAdamW(weights.items(), weight_decay=0.0, mask=mask, release_grads=release)
    return Learner(model, optimizer, mask)


def file_bytes(learner: Learner, dtype: torch.dtype) -> int:
    """What has to be passed on beside the base: a patch, an adapter or all weights.

    Raises:
        PeckerError: a frozen entry has lost its bits.
    """
    after = copy.deepcopy(learner.model).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        if learner.mask is not None:
            save_patch(f"{folder}/p.safetensors", base_model().to(dtype), after, learner.mask)
        elif hasattr(after, "peft_config"):
            after.save_pretrained(folder)
        else:
            save_file(dict(after.named_parameters()), f"{folder}/w.safetensors")
        return max(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


# ---- what is measured


@dataclass(frozen=True)
class CostCase(Case):
    """Time and memory of a step; `batch_size` windows."""

    benchmark = "language_cost"
    baselines = ("SHiRA",)
    clock = time.process_time

    rank: int
    batch_size: int

    def providers(self, setup: Setup) -> dict[str, Builder]:
        """A random mask stands for all masks: it is the one that touches most cache lines."""
        kinds = {name: (name, False) for name in ("full", *PEFT, "random")}
        kinds["random, released gradients"] = "random", True
        return {name: partial(self._build_one, *kind) for name, kind in kinds.items()}

    def _build_one(self, method: str, release: bool) -> Provider:
        steps = partial(_steps, method, self.rank, self.batch_size, release)
        learner = steps(WIDTH)
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["peft", "transformers.models.llama.modeling_llama"])
        with ProcessPoolExecutor(1, processes) as child:
            peak = child.submit(_peak, steps).result()
        columns = {"trained_values": learner.trained_values, "peak_bytes": peak}
        match = None
        if learner.mask is not None:
            before, after = make_model(WIDTH).state_dict(), learner.model.state_dict()
            match = not check_frozen(before, after, learner.mask.to_dense()).frozen_changed
        ids = next(batches("code to learn", self.batch_size, 0))
        return Provider(partial(step, learner.model, learner.optimizer, ids), match, columns)


def _steps(method: str, rank: int, batch_size: int, release: bool, width: int) -> Learner:
    """The first steps of a model with random weights."""
    learner = start(method, make_model(width), rank, 0, release)
    train(learner.model, learner.optimizer, batches("code to learn", batch_size, 0), 1e-3, 3)
    return learner


def _peak(steps: Callable[[int], Learner]) -> int | None:
    """In a process of its own: that of a small model first loads what all need."""
    torch.set_num_threads(1)
    with suppress(AttributeError):  # glibc: blocks from 64 KiB are given back when they are freed
        ctypes.CDLL(None).mallopt(-3, 2**16)
    steps(64)
    return peak_memory(partial(steps, WIDTH))[1]


@dataclass(frozen=True)
class TuneCase(Case):
    """All runs of a method: each rate on one seed, then the best of them on the others."""

    benchmark = "language"

    method: str
    rank: int

    def rows(self, setup: Setup) -> Iterator[Row]:
        """A row for each seed; none before all are in, since a case with rows is not run again."""
        rates, power = RATES[self.method]
        scale = (RANKS[-1] / (self.rank or RANKS[-1])) ** power
        tried = [(self._loss(scale * lr), scale * lr) for lr in rates]
        yield from [self._row(min(tried)[1], tried, seed) for seed in SEEDS]

    def _run(self, lr: float, seed: int) -> Learner:
        learner = start(self.method, base_model(), self.rank, seed)
        train(learner.model, learner.optimizer, batches("code to learn", BATCH, seed), lr, STEPS)
        return learner

    def _loss(self, lr: float) -> float:
        loss = held_out(self._run(lr, TUNING_SEED).model, "code to choose by")
        return loss if math.isfinite(loss) else math.inf

    def _row(self, lr: float, tried: list[tuple[float, float]], seed: int) -> Row:
        learner = self._run(lr, seed)
        try:
            sizes = [file_bytes(learner, dtype) for dtype in (torch.float32, torch.bfloat16)]
            match = None if learner.mask is None else True
        except PeckerError:  # a frozen entry has moved
            sizes, match = [0, 0], False
        return {
            "benchmark": self.benchmark,
            **asdict(self),
            "seed": seed,
            "match": match,
            "lr": lr,
            "tried": tried,  # (loss to choose by, rate)
            "trained_values": learner.trained_values,
            **_judged(learner.model),
            **{f"{key}_before": loss for key, loss in _base_judged().items()},
            "file_bytes": sizes[0],
            "bf16_file_bytes": sizes[1],
        }


def _judged(model: nn.Module) -> dict[str, float]:
    return {f"{text}_loss": held_out(model, f"{text} to judge by") for text in ("code", "prose")}


@cache
def _base_judged() -> dict[str, float]:
    return _judged(base_model())


def cells() -> list[Case]:
    """The costs, then every method at each rank; all weights have none."""
    costs: list[Case] = [CostCase("llama", *each) for each in product(RANKS, (1, 8))]
    others = product((METHODS[1:-1], METHODS[-1:]), RANKS)
    return [
        *costs,
        TuneCase("llama", "full", 0),
        *(TuneCase("llama", name, rank) for names, rank in others for name in names),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser(__doc__, repeats=20).parse_args(argv)
    methods = {getattr(case, "method", "LoRA") for case in asked_for(options, cells())}
    if not options.list and methods & set(PEFT) and importlib.util.find_spec("peft") is None:
        print("language.py: needs peft, which is not installed: pip install peft", file=sys.stderr)
        return 2
    return command(options, cells(), go_on=True)


if __name__ == "__main__":
    sys.exit(main())
