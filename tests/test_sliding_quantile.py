from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.statistics import SlidingQuantile, percentile_of
from tests.properties import pinned

PINNED = pinned(150)

norms = st.floats(min_value=0.0, max_value=1.7e308)
few_distinct_norms = st.sampled_from([0.0, 5e-324, 1e-310, 1e-30, 0.1, 1.0, 1.0000000000000002, 3.0, 1e30, 1.7e308])
streams = st.lists(norms | few_distinct_norms, min_size=1, max_size=60)
percentiles = st.sampled_from([0, 1, 10, 25, 50, 75, 90, 99.9, 100]) | st.floats(min_value=0, max_value=100)
windows = st.sampled_from([None, 1, 2, 3, 7, 50])


def after(stream, window):
    quantile = SlidingQuantile(window)
    quantile.extend(stream)
    return quantile


@PINNED
@given(streams, percentiles)
def test_percentile_of_ordered_values_is_numpys_bit_for_bit(values, percentile):
    assert percentile_of(sorted(values), percentile) == float(np.percentile(values, percentile))


@PINNED
@given(streams, windows, percentiles)
def test_every_step_of_a_stream_is_numpys_percentile_of_the_window_bit_for_bit(values, window, percentile):
    quantile = SlidingQuantile(window)
    for step, value in enumerate(values):
        quantile.update(value)
        inside = values[: step + 1] if window is None else values[: step + 1][-window:]
        assert len(quantile) == len(inside)
        assert quantile.get(percentile) == float(np.percentile(inside, percentile))


@pytest.mark.parametrize("window", [1, 10, 128, 1000, None])
def test_long_lognormal_stream_with_duplicates_is_numpys_percentile(window):
    values = np.random.default_rng(3).lognormal(0, 2, 3000).round(2).tolist()
    quantile = SlidingQuantile(window)
    for step, value in enumerate(values):
        quantile.update(value)
        if step % 100 == 99:
            inside = values[: step + 1] if window is None else values[: step + 1][-window:]
            for percentile in (0, 10, 37.5, 50, 90, 99, 100):
                assert quantile.get(percentile) == float(np.percentile(inside, percentile))


def test_halfway_between_two_values_of_different_size_it_rounds_as_numpy():
    for pair in np.random.default_rng(4).lognormal(0, 5, (500, 2)).tolist():
        assert after(pair, None).get(50) == float(np.percentile(pair, 50))


@PINNED
@given(streams, windows, st.lists(percentiles, min_size=2, max_size=6))
def test_value_does_not_fall_as_the_percentile_rises(values, window, ascending):
    quantile = after(values, window)
    for low, high in pairwise(quantile.get(percentile) for percentile in sorted(ascending)):
        # NumPy interpolates from the nearer end: halfway between two values the two forms differ by a rounding.
        assert low <= high or low == pytest.approx(high, rel=1e-15, abs=0)


def test_state_loaded_into_a_smaller_window_keeps_the_latest_values():
    smaller = SlidingQuantile(2)
    smaller.load_state_dict(after([9.0, 1.0, 5.0, 3.0], None).state_dict())
    assert len(smaller) == 2
    assert [smaller.get(0), smaller.get(50), smaller.get(100)] == [3.0, 4.0, 5.0]
