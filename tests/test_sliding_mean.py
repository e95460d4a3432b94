from fractions import Fraction
from math import sqrt, ulp
from statistics import variance
from sys import float_info

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.statistics import SlidingMean
from tests.properties import pinned

PINNED = pinned(150)

streams = st.lists(st.floats(min_value=0.0, max_value=1e300), min_size=1, max_size=60)
windows = st.sampled_from([1, 2, 3, 7, 50])


def after(stream, window):
    mean = SlidingMean(window)
    mean.extend(stream)
    return mean


@PINNED
@given(streams, windows)
def test_every_step_is_the_exact_mean_of_the_window_to_the_last_place(values, window):
    mean = SlidingMean(window)
    for step, value in enumerate(values):
        mean.update(value)
        inside = values[: step + 1][-window:]
        exact = sum(map(Fraction, inside)) / len(inside)
        assert len(mean) == len(inside)
        assert abs(Fraction(mean.get()) - exact) <= Fraction(ulp(mean.get()))


def test_a_huge_value_that_has_left_the_window_leaves_no_trace():
    assert after([1e300, 1.0, 3.0], 2).get() == 2.0


@pytest.mark.parametrize("value", [1.7e308, float_info.max])
@pytest.mark.parametrize("count", [2, 3, 7, 100])
def test_mean_of_the_largest_floats_is_one_of_them(value, count):
    assert after([value] * count, count).get() == pytest.approx(value, rel=1e-15, abs=0)


@PINNED
@given(st.lists(st.floats(min_value=1e-100, max_value=1e100), min_size=2, max_size=40), windows)
def test_the_standard_deviation_is_the_unbiased_one_of_the_window(values, window):
    inside = values[-window:]
    exact = variance(map(Fraction, inside)) if len(inside) > 1 else 0
    assert after(values, window).std() == pytest.approx(sqrt(exact), rel=1e-12, abs=2 * ulp(max(inside)))


def test_a_small_spread_around_a_large_mean_is_not_lost_to_cancellation():
    values = [1e8 + (-1) ** step * 1e-3 for step in range(100)]
    assert after(values, 100).std() == pytest.approx(1e-3 * sqrt(100 / 99), rel=1e-4, abs=0)


@pytest.mark.parametrize(("values", "expected"), [([7.0], 0.0), ([2.0] * 5, 0.0), ([1.0, 3.0], sqrt(2))])
def test_standard_deviation_of_a_single_value_of_equal_ones_and_of_two(values, expected):
    assert after(values, 10).std() == expected


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e300, 1.7e308])
def test_squares_neither_overflow_nor_vanish(scale):
    assert after([0.0, scale], 2).std() == pytest.approx(scale * sqrt(0.5), rel=1e-12, abs=5e-324)
