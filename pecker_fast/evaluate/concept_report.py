"""The report on a concept that was erased from a text-to-image pipeline."""

from __future__ import annotations

from typing import Any

from pecker_fast.evaluate.intervals import percent
from pecker_fast.evaluate.page import Table
from pecker_fast.evaluate.recognition import Outcome
from pecker_fast.evaluate.report import Report, RunFacts
from pecker_fast.evaluate.sampling import Sampler

__all__ = ["concept_report"]


def concept_report(
    run: RunFacts,
    *,
    concept: str,
    override: str,
    model: str,
    recipe: str,
    mask_digest: str,
    patch_bytes: int,
    unet_bytes: int,
    samplers: tuple[Sampler, Sampler],
    outcome: Outcome | None = None,
) -> Report:
    """Report on a concept that was to be forgotten.

    `override` is "" for nothing; `samplers` drew the original and the erased model's images;
    `outcome` is None where nobody judged what the prompts name.
    """
    frozen, (before, after) = run.frozen, samplers
    evaluations = [str(_evaluations(sampler)) for sampler in samplers]
    patch = f"{_megabytes(patch_bytes)} ({percent(patch_bytes / unet_bytes)})"
    rows = [
        ("Network evaluations per image", *evaluations),
        (
            "Size: the U-Net's file, and the patch that turns it into the erased one",
            _megabytes(unet_bytes),
            patch,
        ),
        (
            "Salient parameters that changed",
            "",
            f"{frozen.salient_changed:,} of {frozen.salient:,}",
        ),
        ("Frozen parameters that changed", "", f"{frozen.frozen_changed:,} of {frozen.frozen:,}"),
    ]
    about: dict[str, Any] = {
        "figures": {
            "concept": concept,
            "override": override,
            "figures": None if outcome is None else outcome.to_dict(),
            "patch_bytes": patch_bytes,
            "unet_bytes": unet_bytes,
            "patch_share": round(patch_bytes / unet_bytes, 4),
            "model": model,
            "recipe": recipe,
            "mask_digest": mask_digest,
            "sampling": {
                "before": _facts_of(before),
                "after": _facts_of(after),
                "seed": before.seed,
            },
        },
        "conditions": [
            ("Model", model),
            ("Recipe", recipe),
            ("Erased, in favour of", f"{concept} -> {override or 'nothing'}"),
            *run.conditions(),
            ("Mask digest", mask_digest),
            ("Original model's images", f"{before.describe()}, seed {before.seed}"),
            ("Erased model's images", f"{after.describe()}, seed {after.seed}"),
        ],
    }
    name = concept.removeprefix("a ").removeprefix("an ")
    name = name[:1].upper() + name[1:]
    if outcome is not None:
        return Report.of(run, name, outcome, rows=rows, **about)
    return Report(
        run=run,
        headline=f"{name} was erased in favour of {override or 'nothing'}; no classifier has "
        "judged the images.",
        gone=None,
        kept_sentence="",
        kept=None,
        tables=[Table("Figures", rows)],
        **about,
    )


def _evaluations(sampler: Sampler) -> int:
    """Network evaluations for an image; guidance doubles them."""
    return sampler.steps * (1 if sampler.guidance in (None, 1) else 2)


def _facts_of(sampler: Sampler) -> dict[str, Any]:
    evaluations = {"steps": sampler.steps, "evaluations": _evaluations(sampler)}
    if sampler.steps == 1:
        return {**evaluations, "t_init": sampler.t_init}
    return {**evaluations, "guidance": sampler.guidance, "negative": sampler.negative}


def _megabytes(size: int) -> str:
    """1_720_000 -> '1.72 MB'."""
    return f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e9:,.3g} GB"
