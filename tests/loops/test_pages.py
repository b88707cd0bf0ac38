"""The pages of docs/loops are short, all are found from the first one, and all run."""

import re
from pathlib import Path

import pytest
from loop_pages import FOLDER, blocks

PAGES = sorted(page.stem for page in FOLDER.glob("*.md"))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "index"])
def test_a_page(page):
    text = (FOLDER / f"{page}.md").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("```")]
    assert len(lines) <= 20
    assert f"({page}.md)" in (FOLDER / "index.md").read_text()
    tests = [path.read_text() for path in Path(__file__).parent.glob("*.py")]
    ran = {n for text in tests for n in re.findall(rf'run\("{page}", .*?((?:, \d)+)\)', text)}
    numbers = {int(number) for found in ran for number in re.findall(r"\d", found)}
    assert numbers == set(range(len(blocks(page))))
