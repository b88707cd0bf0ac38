"""Bad input of every kind to every command: one line that says why, and nothing else happens.

The tables make some four thousand cases. One in ten is run (`shares.py`), so that each table shows
some of its entries at each door.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_input import seeds
from bad_input.case import Case, check, prepare, snapshot
from bad_input.zygote import Zygote
from shares import chosen

import pecker_fast

KINDS = (
    "options", "models", "pipelines", "judges", "images", "masks", "runs", "comparing",
    "converting", "prompts", "outputs", "surroundings",
)  # fmt: skip

EVERY = 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="session")
def valid(zygote: Zygote) -> Iterator[Path]:
    """What `seeds` makes."""
    with tempfile.TemporaryDirectory(prefix="bad") as folder:
        seeds.make(Path(folder), zygote)
        yield Path(folder)


def _cases() -> Iterator[object]:
    for kind in KINDS:
        cases = importlib.import_module(f"bad_input.{kind}").CASES
        assert len({case.id for case in cases}) == len(cases), f"two cases of one name in {kind}"
        for case in cases:
            name = f"{kind}: {ascii(case.id)[1:-1]}"
            if chosen(name, EVERY):
                yield pytest.param(case, id=name)


def _readable_by_all() -> bool:
    package = Path(pecker_fast.__file__).resolve()
    return all(place.stat().st_mode & 0o001 for place in package.parents)


@pytest.mark.parametrize("case", list(_cases()))
def test_is_refused(case: Case, zygote: Zygote, valid: Path) -> None:
    if case.options.get("nobody") and os.geteuid() == 0 and not _readable_by_all():
        pytest.skip("root may read everything, and others may not read the package")
    root = Path(tempfile.mkdtemp(prefix="bad"))
    try:
        folder = prepare(case, valid, root)
        before = snapshot(root)
        environment = {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp")}
        options = {**case.options}
        options["environment"] = {**environment, **options.get("environment", {})}
        ended = zygote.run(folder, list(case.arguments), **options)
        found = check(case, ended, before, snapshot(root))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    last = (ended.err.strip().splitlines() or ["nothing"])[-1]
    assert not found, f"{'; '.join(found)}. It says: {last[:400]!r}"
