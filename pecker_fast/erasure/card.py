"""The model card of an erased model, and the way to the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pecker_fast.errors import PeckerError, printable
from pecker_fast.models.card import add_to_card
from pecker_fast.runs.finding import MODEL_NAME, is_repository

if TYPE_CHECKING:
    from pecker_fast.erasure.run import Erased

__all__ = ["push", "scalars", "write_card"]

_TITLES = {
    "forget": "Images of what was to be forgotten that are still recognised",
    "keep": "Images of the rest that are recognised",
    "frechet": "Fréchet distance of the rest to real images",
}


def write_card(erased: Erased[Any], base_model: str | None) -> None:
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


def push(folder: Path, also: Path, repository: str, *, private: bool, token: str | None) -> str:
    """Upload a folder to the hub.

    Args:
        folder: of the erased model.
        also: the patch, which goes beside it where it is there.
        repository: `owner/name`; made where there is none.
        private: one that is made, is.
        token: None: as huggingface_hub finds it.

    Returns:
        Its address.

    Raises:
        PeckerError: no id, or the hub refuses.
    """
    from huggingface_hub import HfApi

    if not is_repository(repository):
        raise PeckerError(f"push: {repository!r} is no id; expected owner/name")
    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Erased with pecker-fast"
        )
        if also.is_file():
            api.upload_file(repo_id=repository, path_or_fileobj=also, path_in_repo=also.name)
    except Exception as error:  # its own of several kinds, those of two HTTP libraries, OSError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PeckerError(
            f"push: {repository}: {reason[:200]}; the result stays in {folder}: after "
            "`hf auth login` with a token that may write, push again"
        ) from error
    return str(url)


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
