"""Short runs of every training method end with the bits that are on record, and say the same."""

import json

import pytest
from short_runs.make import RECORDS, Session, unusable

RECORD = json.loads(RECORDS.read_text())
# One of each kind; the others are slow.
FAST = {"pecker", "bf16", "esd", "concept", "train_teacher"}


@pytest.fixture(scope="module")
def session():
    if reason := unusable(RECORD["versions"]):
        pytest.skip(reason)
    session = Session()
    yield session
    session.close()


def test_every_case_is_on_record(session):
    assert session.names == list(RECORD["cases"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in RECORD["cases"]],
)
def test_same_bits(session, name):
    """Where it fails: a fault, or a change that belongs under Numerics in the CHANGELOG."""
    assert session.record(name) == RECORD["cases"][name]
