"""Make the folder that the Hugging Face kernels hub builds MaskedAdamW from: the Triton part alone.

    python tools/kernels_hub/build.py build/masked-adamw
    cd build/masked-adamw && kernel-builder build-and-upload

What the optimizer imports is copied under torch-ext/masked_adamw with relative imports, and its
operators get a namespace of their own, since several versions of a kernel may live in one process.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = "pecker_fast"
NAME = "masked_adamw"
# Loaded by name, or inside functions, so that no import at the top of a file tells of them.
ROOTS = ("optim.adamw", "optim.delta", "backends.reference", "backends.triton")
LEFT_OUT = "not part of this kernel: pip install pecker-fast"


def main() -> None:
    """Build into the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER")
    out = Path(sys.argv[1])
    if out.exists():
        sys.exit(f"{out}: exists; remove it first")
    build(out)
    print(out)


def build(out: Path) -> None:
    """Write the whole folder."""
    shutil.copytree(HERE / "project", out)
    package = out / "torch-ext" / NAME
    sources = {path: path.read_text() for path in sorted(needed())}
    digest = hashlib.sha256("".join(sources.values()).encode()).hexdigest()
    for path, source in sources.items():
        target = package / path.relative_to(ROOT / PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        depth = len(path.relative_to(ROOT / PACKAGE).parts)
        target.write_text(relative(source, depth, f"{NAME}_{digest[:8]}"))
    for folder in [found for found in package.rglob("*") if found.is_dir()]:
        (folder / "__init__.py").touch()
    report = dict.fromkeys(("cpu", "cuda"), LEFT_OUT)
    (package / "_build_report.json").write_text(json.dumps(report) + "\n")
    shutil.copy(ROOT / "LICENSE", out)


def needed() -> set[Path]:
    """The files of all modules that the roots import when they are imported."""
    found: set[Path] = set()
    todo = [f"{PACKAGE}.{root}" for root in ROOTS]
    while todo:
        path = file_of(todo.pop())
        if path is None or path in found or path == ROOT / PACKAGE / "__init__.py":
            continue
        found.add(path)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                todo += [f"{node.module}.{alias.name}" for alias in node.names]
                todo.append(str(node.module))
    return found


def file_of(module: str) -> Path | None:
    """A module's file; None for a name in a module."""
    stem = ROOT / module.replace(".", "/")
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.exists()), None)


def relative(source: str, depth: int, namespace: str) -> str:
    """A file's text for its place in a package of any name, `depth` levels below its top."""
    dots = "." * depth
    source = re.sub(rf"\bfrom {PACKAGE}(\.| import)", rf"from {dots}\1", source)
    source = source.replace(f"from {dots}.", f"from {dots}")
    source = source.replace(f'Library("{PACKAGE}"', f'Library("{namespace}"')
    source = source.replace(f'f"{PACKAGE}::', f'f"{namespace}::')
    return source.replace(f"torch.ops.{PACKAGE}.", f"torch.ops.{namespace}.")


if __name__ == "__main__":
    main()
