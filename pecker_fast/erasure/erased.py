"""What an erasure has made: the model with its card, the proof, the report, and the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pecker_fast.errors import PeckerError, printable
from pecker_fast.evaluate.report import Report, RunFacts
from pecker_fast.masks.mask import SaliencyMask
from pecker_fast.masks.verify import FrozenCheck
from pecker_fast.models import ModelFolder
from pecker_fast.models.card import add_to_card
from pecker_fast.models.pipeline import PipelineFolder
from pecker_fast.models.weights import as_dtype
from pecker_fast.runs.directory import PATCH_NAME
from pecker_fast.runs.finding import MODEL_NAME, PIPELINE_NAME, is_repository

__all__ = ["Erased", "Tracker", "scalars", "write_card"]

_TITLES = {
    "forget": "Images of what was to be forgotten that are still recognised",
    "keep": "Images of the rest that are recognised",
    "frechet": "Fréchet distance of the rest to real images",
}


class Tracker(Protocol):
    """What keeps values of a run: a run of wandb, a tracker of accelerate, or one of your own."""

    def log(self, values: dict[str, Any], /, *, step: int) -> Any:
        """Keep them.

        Args:
            values: numbers by name: `loss/...`, `curve/...` (judged points), `report/...`; and
                the text `notes` once, at the start.
            step: iterations that are done.
        """


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What a run has made.

    Attributes:
        out: the run directory, with all of it.
        model: the erased model or pipeline, as it lies in `out`.
        mask: the entries that the run might change, at its end.
        frozen: the bit-by-bit comparison of the frozen entries before and after.
        facts: how the run went: iterations, seconds, backend, machine, configuration.
        report: the figures, as in report.html; None where nothing judged or showed the images,
            and on all processes but the first.
    """

    out: Path
    model: Any  # a ModelFolder or a PipelineFolder
    mask: SaliencyMask
    frozen: FrozenCheck
    facts: RunFacts
    report: Report | None = None

    @property
    def kind(self) -> str:
        """What was erased from: model or pipeline, which is also its folder's name in `out`."""
        return MODEL_NAME if isinstance(self.model, ModelFolder) else PIPELINE_NAME

    @property
    def folder(self) -> Path:
        """The folder of the erased model or pipeline."""
        return self.out / self.kind

    @property
    def patch(self) -> Path | None:
        """The file that turns the original's network into the erased one; None without one."""
        file = self.out / PATCH_NAME
        return file if file.is_file() else None

    @property
    def pipeline(self) -> Any:
        """What was erased as a pipeline of diffusers, loaded anew.

        Raises:
            PeckerError: a class model that draws in many steps; diffusers has no pipeline that asks
                such a model for a class.
        """
        from diffusers import DiffusionPipeline

        from pecker_fast.models.one_step_pipeline import OneStepPipeline

        if not (self.folder / "model_index.json").is_file():
            raise PeckerError(
                f"{self.folder}: draws a class in many steps, for which diffusers has no pipeline; "
                "use `pecker-fast sample`, or pecker_fast.evaluate.sampling.Sampler"
            )
        prompts = isinstance(self.model, PipelineFolder)
        kind = DiffusionPipeline if prompts else OneStepPipeline
        return kind.from_pretrained(self.folder, **as_dtype(self.model.network.dtype))

    def attack(self, classifier: str | os.PathLike[str] | None = None, **options: Any) -> Any:
        """Ask for what was erased in every other way, and teach it again.

        Args:
            classifier: folder of the judge.
            options: as `pecker_fast.erasure.attack.attack` takes them, such as `original=`.

        Raises:
            PeckerError: as `attack`.
        """
        from pecker_fast.erasure.attack import attack

        options["classifier"] = classifier
        for name in ("classifier", "prompts", "clip", "original", "retrained"):
            if options.get(name) is not None:
                options[name] = Path(options[name])
        return attack(self.out, **options)

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None
    ) -> str:
        """Upload the erased model with its card, and the patch; returns the address.

        Args:
            repository: `owner/name`; made where there is none.
            private: one that is made, is.
            token: None: as huggingface_hub finds it, from `hf auth login` or HF_TOKEN.

        Raises:
            FrozenChangedError: a frozen entry has changed.
            PeckerError: no id, or the hub refuses.
        """
        from huggingface_hub import HfApi

        self.frozen.require_unchanged(self.out)
        if not is_repository(repository):
            raise PeckerError(f"push: {repository!r} is no id; expected owner/name")
        api, said = HfApi(token=token), "Erased with pecker-fast"
        try:
            url = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=self.folder, commit_message=said)
            if (patch := self.patch) is not None:
                api.upload_file(repo_id=repository, path_or_fileobj=patch, path_in_repo=patch.name)
        except Exception as error:  # its own of several kinds, of two HTTP libraries, OSError
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PeckerError(
                f"push: {repository}: {reason[:200]}; the result stays in {self.folder}: after "
                "`hf auth login` with a token that may write, push again"
            ) from error
        return str(url)


def write_card(erased: Erased, base_model: str | None) -> None:
    """Say in the folder's README.md what was erased, by what, and with which result.

    Args:
        erased: the run.
        base_model: id on the hub of the original. None: it is not from there.
    """
    report, facts = erased.report, erased.facts
    sentences = [erased.frozen.sentence()]
    if report is not None:
        sentences = [report.headline, report.kept_sentence, *sentences]
    lines = ["# What was erased", "", " ".join(filter(None, sentences))]
    for table in [] if report is None else report.tables[:1]:
        rule = ["---"] * len(table.columns)
        lines += ["", *(_row(cells) for cells in (table.columns, rule, *table.rows))]
    how = (
        f"Made with pecker-fast {facts.versions['pecker-fast']} on {facts.machine['device_name']}: "
        f"{facts.iterations} iterations, a {facts.mask} mask of density {facts.density:.4g}, seed "
        f"{facts.seed}."
    )
    lines += ["", how]
    task = "unconditional-image-generation" if erased.kind == MODEL_NAME else "text-to-image"
    metadata: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": task,
        "tags": ["machine-unlearning", "pecker-fast"],
    }
    if base_model is not None:
        metadata["base_model"] = base_model
    if results := [] if report is None else list(_results(report.figures, task)):
        metadata |= {"eval_results": results, "model_name": erased.folder.name}
    add_to_card(erased.folder, "\n".join(lines), **metadata)


def scalars(figures: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among figures of a report; of a concept they stand one level deeper."""
    inner = figures.get("figures")
    both = {**figures, **(inner if isinstance(inner, Mapping) else {})}
    return {
        name: value for name, value in both.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }  # fmt: skip


def _results(figures: Mapping[str, Any], task: str) -> Iterator[Any]:
    """What the judge found, as the hub's tables have it."""
    from huggingface_hub import EvalResult

    for name, value in scalars(figures).items():
        kind, _, when = name.partition("_")
        if kind in _TITLES and when in ("after", "accuracy_after", "trained_after"):
            yield EvalResult(
                task_type=task,
                dataset_type="generated",
                dataset_name="Images that the model draws",
                metric_type="frechet_distance" if kind == "frechet" else "accuracy",
                metric_name=_TITLES[kind],
                metric_value=value,
            )


def _row(cells: Any) -> str:
    safe = [printable(cell).replace("|", r"\|").replace("<", "&lt;") for cell in cells]
    return f"| {' | '.join(safe)} |"
