"""Short runs of every training method end with the bits that are on record, and say the same."""

import json

import pytest
from short_runs.make import RECORDS, Session, unusable

RECORD = json.loads(RECORDS.read_text())
# One of each kind; the others are slow.
FAST = {"pecker", "bf16", "esd", "concept", "train_teacher"}
# Of classifiers the last bits are the processor's (an AMD EPYC's are on record): figures and norms.
NEARLY = {"train_small_classifier", "train_resnet34", "report", "sample_and_evaluate"}


def numbers(found):
    """What a record holds besides digests, flat."""
    if isinstance(found, dict):
        found = [value for key, value in sorted(found.items()) if key != "sha256"]
    if isinstance(found, list):
        return [number for value in found for number in numbers(value)]
    return [float(found) if isinstance(found, str) and found[:1].isdigit() else found]


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
    found, recorded = session.record(name), RECORD["cases"][name]
    if name in NEARLY:
        found, recorded = numbers(found), pytest.approx(numbers(recorded), rel=1e-3)
    assert found == recorded
