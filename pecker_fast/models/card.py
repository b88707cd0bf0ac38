"""README.md of a folder: how to draw from it, what is known of it, and metadata for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pecker_fast.files import read_text, write_text

__all__ = ["README", "add_to_card"]

README = "README.md"


def add_to_card(root: Path, section: str, **metadata: Any) -> None:
    """Append to README.md, which is made where there is none; what it says already stays.

    Args:
        root: the folder.
        section: in Markdown.
        metadata: entries of the block at its top, as huggingface_hub's `ModelCardData` has them.
            They take the place of those of the same name; a list of `tags` is added to them.
    """
    file = root / README
    before = read_text(file) if file.is_file() else ""
    text = f"{before.rstrip()}\n\n{section}\n".lstrip()
    if metadata:
        text = _with_metadata(text, metadata)
    write_text(file, text)


def _with_metadata(text: str, entries: dict[str, Any]) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    empty = "---\n{}\n---\n"
    try:
        card = ModelCard(text if text.startswith("---") else empty + text)
        known = card.data.to_dict()  # type: ignore[no-untyped-call]
    except Exception:  # of YAML or of its own: what a stranger's block says cannot be kept
        card, known = ModelCard(empty + text), {}
    # Figures of the original are not the result's.
    known = {name: value for name, value in known.items() if name != "model-index"}
    tags = dict.fromkeys([*(known.get("tags") or []), *entries.pop("tags", [])])
    entries = {**known, **entries, "tags": list(tags)}
    card.data = ModelCardData(**entries, ignore_metadata_errors=True)
    return str(card)
