"""report.json and report.html of a concept that was erased from a text-to-image pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pecker_fast.evaluate.concept import ConceptFigures, Share
from pecker_fast.evaluate.page import Picture, RunReport, Table, percent

__all__ = ["ConceptReport", "Picture", "Sampling", "Table"]


@dataclass(frozen=True)
class Sampling:
    """How the images of the report were drawn, from the same noise for both models.

    Attributes:
        steps: DDIM steps of the original model.
        guidance: of the original model; the erased one needs none.
        t_init: time step from which the erased model draws in one step.
        seed: of the noise.
        negative: what the guidance leads away from.
    """

    steps: int
    guidance: float
    t_init: int
    seed: int
    negative: str = ""

    @property
    def evaluations(self) -> int:
        """Network evaluations for an image of the original model; guidance doubles them."""
        return self.steps * (1 if self.guidance == 1 else 2)

    def original(self) -> str:
        """The original model's sampler in words."""
        negative = f", away from {self.negative!r}" if self.negative else ""
        return f"{self.steps} DDIM steps, guidance {self.guidance:g}{negative}, seed {self.seed}"

    def erased(self) -> str:
        """The erased model's sampler in words."""
        return f"one step from t = {self.t_init}, no guidance, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class ConceptReport(RunReport):
    """Everything an erasure of a concept is judged by.

    Attributes:
        concept: what was to be forgotten, in words, e.g. "sneaker".
        override: what takes its place, in words; "" for nothing.
        model: the pipeline it was erased from, e.g. its folder.
        recipe: name of the recipe.
        mask_digest: of the mask.
        patch_bytes: size of the patch.
        unet_bytes: size of the network's file.
        sampling: how the images were drawn.
        figures: a classifier's; None where there is no classifier for what the prompts name.
        sections: further tables: a detector's counts, a CLIP score. See `concept_sections`.
    """

    TEMPLATE: ClassVar[str] = "concept_report.html"

    concept: str
    override: str
    model: str
    recipe: str
    mask_digest: str
    patch_bytes: int
    unet_bytes: int
    sampling: Sampling
    figures: ConceptFigures | None = None
    sections: Sequence[Table] = ()

    @property
    def gone(self) -> bool | None:
        """See `ConceptFigures.gone`; None without figures."""
        return None if self.figures is None else self.figures.gone

    @property
    def kept(self) -> bool | None:
        """See `ConceptFigures.kept`; None without figures."""
        return None if self.figures is None else self.figures.kept

    @property
    def replaced_by(self) -> str:
        """What takes the concept's place, or "nothing"."""
        return self.override or "nothing"

    def headline(self) -> str:
        """One plain sentence: what became of the concept."""
        name = self.concept[:1].upper() + self.concept[1:]
        if self.figures is None:
            return (
                f"{name} was erased in favour of {self.replaced_by}; no classifier has "
                "judged the images."
            )
        after = self.figures.after
        state = "is gone" if self.gone else "is not gone"
        untold = after.forget_held_back
        heard = f" ({untold.hits} of {untold.count:,} with captions the erasure was never told)"
        return (
            f"{name} {state}: {after.forget.hits} of {after.forget.count:,} images asked "
            f"for it are recognised as {self.figures.name}{heard if untold.count else ''}."
        )

    def kept_sentence(self) -> str:
        """One plain sentence: what became of the rest; "" without figures."""
        if self.figures is None:
            return ""
        before, after = self.figures.before.keep, self.figures.after.keep
        return (
            f"The rest {'is kept' if self.kept else 'has suffered'}: {after} of {after.count:,} "
            f"images of other captions are recognised as what was asked for ({before} for the "
            "model it started from)."
        )

    def to_dict(self) -> dict[str, Any]:
        """report.json: the figures first, then the conditions they hold under."""
        sampling = self.sampling
        return {
            "summary": f"{self.headline()} {self.kept_sentence()}".strip(),
            "concept": self.concept,
            "override": self.override,
            "figures": None if self.figures is None else self.figures.to_dict(),
            "sections": [section.to_dict() for section in self.sections],
            "patch_bytes": self.patch_bytes,
            "unet_bytes": self.unet_bytes,
            "patch_share": round(self.patch_bytes / self.unet_bytes, 4),
            "model": self.model,
            "recipe": self.recipe,
            "mask_digest": self.mask_digest,
            "sampling": {
                "before": {
                    "steps": sampling.steps,
                    "guidance": sampling.guidance,
                    "negative": sampling.negative,
                    "evaluations": sampling.evaluations,
                },
                "after": {"steps": 1, "t_init": sampling.t_init, "evaluations": 1},
                "seed": sampling.seed,
            },
            **super().to_dict(),
        }

    def tables(self) -> list[Table]:
        """Figures by kind of caption, by class, and what else was given."""
        sampling, frozen = self.sampling, self.frozen
        rows: list[Sequence[str]] = []
        if self.figures is not None:
            rows += [_compared(*row) for row in self.figures.rows()]
        rows += [
            ("Network evaluations per image", str(sampling.evaluations), "1"),
            (
                "Size: the U-Net's file, and the patch that turns it into the erased one",
                megabytes(self.unet_bytes),
                f"{megabytes(self.patch_bytes)} ({percent(self.patch_bytes / self.unet_bytes)})",
            ),
            (
                "Salient parameters that changed",
                "",
                _out_of(frozen.salient_changed, frozen.salient),
            ),
            ("Frozen parameters that changed", "", _out_of(frozen.frozen_changed, frozen.frozen)),
        ]
        tables = [Table("Figures", rows)]
        if self.figures is not None and self.figures.after.classes:
            classes = [_compared(*row) for row in self.figures.class_rows()]
            tables.append(Table("Classes that are to be kept", classes))
        return [*tables, *self.sections]

    def conditions(self) -> list[tuple[str, str]]:
        """What the figures hold for."""
        return [
            ("Model", self.model),
            ("Recipe", self.recipe),
            ("Erased, in favour of", f"{self.concept} -> {self.replaced_by}"),
            *super().conditions(),
            ("Mask digest", self.mask_digest),
            ("Original model's images", self.sampling.original()),
            ("Erased model's images", self.sampling.erased()),
        ]


def megabytes(size: int) -> str:
    """1_720_000 -> '1.72 MB'."""
    return f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e9:,.3g} GB"


def _compared(name: str, before: Share, after: Share) -> tuple[str, str, str]:
    """A row of shares, each with its counts."""

    def cell(share: Share) -> str:
        return f"{share} ({_out_of(share.hits, share.count)})" if share.count else "no images"

    return name, cell(before), cell(after)


def _out_of(hits: int, count: int) -> str:
    return f"{hits:,} of {count:,}"
