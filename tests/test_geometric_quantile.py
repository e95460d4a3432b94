from math import exp, inf, log
from sys import float_info

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.statistics import GeometricQuantile
from tests.properties import pinned
from tests.references import geometric_quantile
from tests.streams import norm_streams

PINNED = pinned(150)

streams = st.lists(st.floats(min_value=1e-100, max_value=1e100), min_size=1, max_size=100)
percentiles = st.sampled_from([0, 10, 50, 90, 99, 100]) | st.floats(min_value=0, max_value=100)
rates = st.floats(min_value=1e-3, max_value=1.0)


def tracked(tracker, values):
    tracked_values = []
    for value in values:
        tracker.update(value)
        tracked_values.append(tracker.get())
    return tracked_values


def started(percentile, rate, start):
    tracker = GeometricQuantile(percentile, rate)
    tracker.start(start)
    return tracker


@pytest.mark.parametrize(
    ("records", "start", "percentile", "expected"),
    [
        ([5, 2.5], 16, 0, [8, 4, 2.8284271247461903, 2, 2]),
        ([1.5, 3], 0.5, 100, [1, 2, 2.8284271247461903, 4, 4]),
    ],
)
def test_the_oracle_reproduces_the_published_vectors_of_two_records_a_step(records, start, percentile, expected):
    assert geometric_quantile([records] * 5, start, percentile, log(2)) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("record", "start", "percentile", "expected"),
    [(2.5, 16, 0, [8, 4, 2, 2, 2]), (3, 0.5, 100, [1, 2, 4, 4, 4])],
)
def test_one_record_a_step_halves_or_doubles_until_the_record_is_passed(record, start, percentile, expected):
    assert tracked(started(percentile, log(2), start), [record] * 5) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("percentile", [0, 10, 50, 90, 99, 100])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_one_record_a_step_equals_the_oracle_on_long_streams(percentile, rate):
    for name, norms in norm_streams(2000).items():
        if name != "constant":  # there the tracker comes back to the value, and the last bit decides
            expected = geometric_quantile([[norm] for norm in norms], 1.3, percentile, rate)
            assert tracked(started(percentile, rate, 1.3), norms) == pytest.approx(expected, rel=1e-9, abs=0), name


@PINNED
@given(streams, percentiles, rates, st.floats(min_value=1e-50, max_value=1e50))
def test_the_realised_share_differs_from_the_nominal_by_the_drift(values, percentile, rate, start):
    tracker = started(percentile, rate, start)
    above = 0
    for value in values:
        above += value > tracker.get()
        tracker.update(value)
    deviation = above / len(values) - (1 - percentile / 100)
    bound = abs(log(tracker.get() / start)) / (rate * len(values))
    assert abs(deviation) == pytest.approx(bound, rel=1e-9, abs=1e-10)


@PINNED
@given(streams, percentiles, rates)
def test_a_step_is_bounded_by_the_rate(values, percentile, rate):
    q = percentile / 100
    tracker = started(percentile, rate, 1.0)
    for value in values:
        before = tracker.get()
        tracker.update(value)
        assert before * exp(-rate * (1 - q)) * (1 - 1e-12) <= tracker.get() <= before * exp(rate * q) * (1 + 1e-12)


@PINNED
@given(streams, rates, st.lists(percentiles, min_size=2, max_size=2))
def test_value_is_monotone_in_the_percentile_for_the_same_record(values, rate, pair):
    low, high = sorted(pair)
    for value in values:
        lower, higher = started(low, rate, 1.0), started(high, rate, 1.0)
        lower.update(value)
        higher.update(value)
        assert lower.get() <= higher.get()


def test_without_a_start_the_first_value_is_taken_as_it_is():
    assert tracked(GeometricQuantile(90, 0.5), [7.0]) == [7.0]


def test_value_stays_a_positive_finite_number_however_far_it_is_driven():
    falling = tracked(started(0, 5.0, 1e-300), [1e-320] * 50)
    rising = tracked(started(100, 5.0, 1e300), [inf] * 50)
    assert min(falling) == falling[-1] == float_info.min
    assert max(rising) == rising[-1] == float_info.max


def test_a_step_from_a_denormal_start_is_no_longer_than_any_other():
    tracker = started(50, 0.1, 1e-310)
    before = tracker.get()
    tracker.update(before * 2)
    assert 0 < before < tracker.get() <= before * exp(0.05) * (1 + 1e-9)
