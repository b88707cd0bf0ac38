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
    from huggingface_hub import ModelCard, ModelCardData

    file = root / README
    text = read_text(file) if file.is_file() else ""
    text = f"{text.rstrip()}\n\n{section}\n".lstrip()
    if metadata:
        empty = "---\n{}\n---\n"  # without a block the library warns
        try:
            card = ModelCard(text if text.startswith("---") else empty + text)
        except Exception:  # of YAML or of its own: what a stranger's block says cannot be kept
            card = ModelCard(empty + text)
        known: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
        known.pop("model-index", None)  # figures of the original are not the result's
        tags = dict.fromkeys([*(known.get("tags") or []), *metadata.pop("tags", [])])
        merged = {**known, **metadata, "tags": list(tags)}
        card.data = ModelCardData(**merged, ignore_metadata_errors=True)
        text = str(card)
    write_text(file, text)
