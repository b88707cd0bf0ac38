"""Intervals of shares and of their changes, by R's own figures, and what they take."""

import pytest

from pecker_fast.evaluate.intervals import Share, change, images_to_show_change


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (1, 500, 0.000353, 0.011241),  # R: prop.test(1, 500, correct = FALSE)
        (0, 20, 0.0, 0.161125),
        (20, 20, 0.838875, 1.0),
        (10, 20, 0.299298, 0.700702),
    ],
)
def test_wilson_intervals(count, total, low, high):
    assert Share(count, total).interval == pytest.approx((low, high), abs=1e-6)
    assert Share.of(count / total, total) == Share(count, total)


@pytest.mark.parametrize(
    ("count", "total", "limit"), [(0, 500, 0.02), (6, 500, 0.02), (1, 20, 0.2)]
)
def test_as_many_images_as_it_takes_have_their_bound_at_the_limit(count, total, limit):
    needed = Share(count, total).images_to_stay_below(limit)
    for images, within in ((needed, True), (needed - 1, False)):
        share = Share(count / total * images, images)  # the same share, whatever it takes
        assert (share.interval.high <= limit) == within
    assert Share(10, 500).images_to_stay_below(0.02) is None


def test_change_by_newcombe():
    # Newcombe (1998), table II, method 10: 56/70 - 48/80 is .2 (.0524 to .3339)
    low, high = change(Share(48, 80), Share(56, 70))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    needed = images_to_show_change(Share(900, 1000), Share(890, 1000), -0.03)
    before, after = (Share(round(share * needed), needed) for share in (0.9, 0.89))
    assert change(before, after).low == pytest.approx(-0.03, abs=5e-4)
    assert images_to_show_change(Share(9, 10), Share(8, 10), -0.03) is None
