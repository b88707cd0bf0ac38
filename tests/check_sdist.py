"""A source archive holds every file that a build reads: python tests/check_sdist.py ARCHIVE."""

import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = {".so", ".pyc"}

with tarfile.open(sys.argv[1]) as archive:
    files = {Path(*Path(m.name).parts[1:]).as_posix(): m for m in archive if m.isfile()}
    needed = [ROOT / "pyproject.toml", ROOT / "setup.py", ROOT / "README.md", ROOT / "LICENSE"]
    for folder in ("csrc", "kernels", "pecker_fast", "pecker_fast/kernels"):
        needed += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in needed:
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in MADE or path.name == "_build_report.json":
            continue
        assert name in files, f"{name} is not in the source archive"
        assert archive.extractfile(files[name]).read() == path.read_bytes(), name
print(f"{len(needed)} files looked for in {sys.argv[1]}")
