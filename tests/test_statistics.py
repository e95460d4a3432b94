"""What every streaming estimator keeps to: states, scale, and the answer to no values."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.statistics import DecayedMoments, GeometricQuantile, SlidingMean, SlidingQuantile, percentile_of
from tests.properties import pinned

PINNED = pinned(100)

values = st.floats(min_value=1e-30, max_value=1e30)
STATISTICS = {
    "sliding mean": (lambda: SlidingMean(7), lambda one: (one.get(), one.std())),
    "sliding quantile": (lambda: SlidingQuantile(7), lambda one: (one.get(0), one.get(37.5), one.get(100))),
    "whole history": (lambda: SlidingQuantile(None), lambda one: (one.get(50), one.get(90))),
    "geometric quantile": (lambda: GeometricQuantile(70, 0.3), lambda one: (one.get(),)),
    "decayed moments": (lambda: DecayedMoments(0.9), lambda one: (one.mean, one.std)),
}
every_statistic = pytest.mark.parametrize(("make", "read"), STATISTICS.values(), ids=STATISTICS)


def followed(statistic, read, stream):
    found = []
    for value in stream:
        statistic.update(value)
        found.append(read(statistic))
    return found


@every_statistic
@PINNED
@given(st.lists(values, max_size=40), st.lists(values, min_size=1, max_size=40))
def test_a_state_through_json_continues_exactly(make, read, first, second):
    uninterrupted, resumed, fresh = make(), make(), make()
    followed(uninterrupted, read, first)
    resumed.load_state_dict(json.loads(json.dumps(uninterrupted.state_dict(), allow_nan=False)))
    expected = followed(uninterrupted, read, second)
    assert followed(resumed, read, second) == expected
    assert resumed.state_dict() == uninterrupted.state_dict()
    resumed.load_state_dict(fresh.state_dict())
    assert followed(resumed, read, second) == followed(fresh, read, second)


@every_statistic
@PINNED
@given(st.lists(values, min_size=1, max_size=40), st.integers(-300, 300))
def test_values_times_a_power_of_two_give_the_statistic_times_it(make, read, stream, exponent):
    factor = 2.0**exponent
    plain = followed(make(), read, stream)
    scaled = followed(make(), read, [value * factor for value in stream])
    for ours, theirs in zip(scaled, plain, strict=True):
        assert ours[0] == theirs[0] * factor
        assert ours == pytest.approx([one * factor for one in theirs], rel=1e-12, abs=1e-150)


@every_statistic
def test_of_no_values_there_is_no_statistic(make, read):
    with pytest.raises(ValueError, match=r"of no values is undefined|seen no value yet"):
        read(make())


def test_no_values_and_no_window():
    with pytest.raises(ValueError, match="of no values is undefined"):
        percentile_of([], 50)
    with pytest.raises(ValueError, match="of no values is undefined"):
        SlidingMean(3).std()
    for window in (0, -1):
        for kind in (SlidingMean, SlidingQuantile):
            with pytest.raises(ValueError, match=rf"window must be at least 1.*got {window}"):
                kind(window)
