"""The package's front door: every public name resolves, and opening it costs nothing heavy."""

import subprocess
import sys

import pytest

import pecker_fast


@pytest.mark.parametrize("name", pecker_fast.__all__)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    assert getattr(pecker_fast, name).__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'MaskedSGD'"):
        _ = pecker_fast.MaskedSGD


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pecker_fast, pecker_fast.cli", "torch"),
        ("from pecker_fast import MaskedAdamW", "diffusers"),
    ],
)
def test_import_stays_light(statement: str, absent: str) -> None:
    code = f"import sys; {statement}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
