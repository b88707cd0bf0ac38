"""An object and a style of the shipped emoji erased, beside ESD and SalUn with as many passes.

    python benchmarks/emoji.py --threads 1 --json benchmarks/results/emoji-cpu.json --minutes 60

Every method draws its images itself, in steps of DDIM, without data, and takes as many forward and
backward passes as `demo_emoji_keep_steps`. ESD's target leads away from the concept by guidance 1,
every parameter is free and nothing is said of the rest; SalUn's is what the network itself predicts
of the override, under a mask of half of the parameters by the forget term's gradients, beside the
same remain term. Judges are those that ship with the pipeline. The file is gone on with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench import Case, Setup, command, make_parser
from rows import Row
from torch import Tensor, nn

from pecker_fast.data import emoji_folder, emoji_judges_folder
from pecker_fast.datasets.emoji_captions import (
    OBJECTS,
    STYLES,
    emoji_captions,
    held_back_emoji_captions,
)
from pecker_fast.distill.prompts import TextConditions
from pecker_fast.evaluate.classifier import load_classifier
from pecker_fast.evaluate.classifying import classify
from pecker_fast.evaluate.intervals import Share
from pecker_fast.evaluate.pipeline_sampling import PipelineSampler
from pecker_fast.methods.config import load_baseline_config
from pecker_fast.methods.redirect import Drawing, RedirectObjective
from pecker_fast.methods.trainer import BaselineTrainer
from pecker_fast.models.pipeline import PipelineFolder

FORGET = {"object": "dog", "style": "twemoji"}
STEPS, GUIDANCE = 10, 3.0  # DDIM's, of the judged images
ASKED, KEPT = 504, 3  # images of what is forgotten; of each other pair of object and style


class Away(RedirectObjective):
    """ESD: what guidance away from the concept would predict."""

    def targets(self, network: nn.Module, drawing: Drawing) -> Callable[[Tensor, Tensor], Tensor]:
        """eps_0(nothing) - (eps_0(c_f) - eps_0(nothing)); of what is kept eps_0."""
        assert self.frozen is not None and isinstance(self.conditions, TextConditions)
        nothing = self.conditions.embeddings([""] * len(drawing), self.device)
        without, told = (self.telling(self.frozen, c) for c in (nothing, drawing.told))
        forgotten = _forgotten(drawing)
        return lambda x, t: torch.where(forgotten, 2 * without(x, t) - told(x, t), told(x, t))


class Imitating(RedirectObjective):
    """SalUn: what the network itself predicts of the override."""

    def targets(self, network: nn.Module, drawing: Drawing) -> Callable[[Tensor, Tensor], Tensor]:
        """eps(c_o); of what is kept eps_0."""
        kept, own = super().targets(network, drawing), self.telling(network, drawing.original)
        forgotten = _forgotten(drawing)
        return lambda x, t: torch.where(forgotten, own(x, t), kept(x, t))


def _forgotten(drawing: Drawing) -> Tensor:
    """(N, 1, 1, 1) bool: images that are told one thing and held to another."""
    return (drawing.told != drawing.original).flatten(1).any(1).view(-1, 1, 1, 1)


METHODS: dict[str, tuple[type[RedirectObjective], dict[str, Any]]] = {
    "redirected": (RedirectObjective, {}),
    "ESD": (Away, {"mask.kind": "full", "lambda_remain": 0.0}),
    "SalUn": (
        Imitating,
        {"mask.density": 0.5, "saliency.reduction": "abs_of_sum"},
    ),
}
RATES = {"redirected": (1e-3,), "ESD": (1e-4, 3e-4), "SalUn": (3e-4, 1e-3)}


@dataclass(frozen=True)
class EmojiCase(Case):
    """One erasure; `preset` is the kind of what is forgotten."""

    benchmark = "emoji"

    method: str  # of METHODS, or "original"
    lr: float | None
    seed: int

    def rows(self, setup: Setup) -> Iterator[Row]:
        """How much of each kind the judges recognise."""
        pipeline = PipelineFolder.load(emoji_folder())
        network, match, about = pipeline.network, None, {"iterations": 0}
        if self.method != "original":
            objective, changes = METHODS[self.method]
            values = {"text": f"demo_emoji_{self.preset}", "optimizer.lr": self.lr, **changes}
            config = load_baseline_config("demo_emoji_keep_steps", {**values, "seed": self.seed})
            trainer = BaselineTrainer(objective(pipeline, config, torch.device(setup.device)))
            for _ in trainer.run():
                pass
            network = trainer.erased_network()
            frozen = trainer.verify_frozen(network)
            match = frozen.frozen_changed == 0
            about = {"iterations": trainer.iteration, "s": round(trainer.stopwatch.seconds, 1)}
        figures = judged(pipeline, network, self.preset, self.seed)
        yield {"benchmark": "emoji", **self.__dict__, "match": match, **about, **figures}


def judged(pipeline: PipelineFolder, network: nn.Module, kind: str, seed: int) -> Row:
    """Images of captions, half of them held back, and what the judges say of them: [count, of].

    "forgotten": named as what was to be forgotten, of images asked for it. "in_domain": objects, or
    styles, of all other pairs named right; "cross_domain": their styles, or objects. "beside": the
    same of the images asked for what was to be forgotten.
    """
    gone = FORGET[kind]
    asked = [(name, style) for name in OBJECTS for style in STYLES if gone in (name, style)]
    rest = [(name, style) for name in OBJECTS for style in STYLES if gone not in (name, style)]
    copies = [(asked, copy) for copy in range(ASKED // len(asked))]
    copies += [(rest, copy) for copy in range(KEPT)]
    pairs, prompts = [], []
    for group, copy in copies:
        for index, pair in enumerate(group):
            captions = (emoji_captions, held_back_emoji_captions)[copy % 2](*pair)
            prompts.append(captions[(copy // 2 + index) % len(captions)])
            pairs.append(pair)
    sampler = PipelineSampler(pipeline)
    latents = sampler.latents(network.eval(), prompts, seed, STEPS, guidance=GUIDANCE)
    images = sampler.images(latents) * 2 - 1
    seen = {}
    for judge, names in (("object", OBJECTS), ("style", STYLES)):
        labels = torch.tensor([names.index(pair[judge == "style"]) for pair in pairs])
        logits, _ = classify(load_classifier(emoji_judges_folder() / judge), images)
        seen[judge] = logits.argmax(1) == labels
    count, other = len(prompts) - len(rest) * KEPT, "style" if kind == "object" else "object"
    found = {
        "forgotten": seen[kind][:count],
        "in_domain": seen[kind][count:],
        "cross_domain": seen[other][count:],
        "beside": seen[other][:count],
    }
    shares = {name: Share.counted(right) for name, right in found.items()}
    return {name: [share.count, share.total] for name, share in shares.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, repeats=1)
    options = parser.parse_args(argv)
    cases = [
        EmojiCase(kind, method, lr, 0)
        for kind in FORGET
        for method, rates in {"original": (None,), **RATES}.items()
        for lr in rates
    ]
    return command(options, cases, go_on=True)


if __name__ == "__main__":
    sys.exit(main())
