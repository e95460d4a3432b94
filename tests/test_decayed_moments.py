from fractions import Fraction
from math import inf, isfinite
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.statistics import DecayedMoments, mean_and_variance
from tests.properties import pinned
from tests.references import decayed_moments
from tests.streams import norm_streams

PINNED = pinned(150)

streams = st.lists(st.floats(min_value=1e-30, max_value=1e30), min_size=1, max_size=60)
decays = st.sampled_from([0.0, 0.5, 0.8, 0.97, 0.999]) | st.floats(min_value=0, max_value=1, exclude_max=True)


def followed(moments, values):
    pairs = []
    for value in values:
        moments.update(value)
        pairs.append((moments.mean, moments.variance))
    return pairs


@pytest.mark.parametrize("decay", [0.5, 0.97, 0.999])
def test_long_streams_equal_the_oracle(decay):
    for name, norms in norm_streams(600).items():
        if name != "constant":  # its variance is zero or a rounding: compared in a test of its own
            expected = decayed_moments(norms, decay)
            for actual, right in zip(followed(DecayedMoments(decay), norms), expected, strict=True):
                assert actual == pytest.approx(right, rel=1e-9, abs=0), name


@PINNED
@given(streams, decays)
def test_mean_stays_within_the_values_and_variance_at_or_above_zero(values, decay):
    for mean, variance in followed(DecayedMoments(decay), values):
        assert min(values) * (1 - 1e-12) <= mean <= max(values) * (1 + 1e-12)
        assert 0 <= variance < inf


@PINNED
@given(st.floats(min_value=1e-300, max_value=1e300), decays, st.integers(1, 40))
def test_a_constant_stream_has_no_variance(value, decay, length):
    assert set(followed(DecayedMoments(decay), [value] * length)) == {(value, 0.0)}


def test_a_small_spread_around_a_large_mean_is_not_lost_to_cancellation():
    moments = DecayedMoments(0.99)
    followed(moments, [1e8 + (-1) ** step * 1e-3 for step in range(5000)])
    assert moments.std == pytest.approx(1e-3, rel=0.02, abs=0)


@pytest.mark.parametrize("value", [1e155, 1e200, 1.7e308])
def test_a_value_whose_square_overflows_breaks_nothing(value):
    moments = DecayedMoments(0.97)
    followed(moments, [1.0, value, 1.0])
    assert isfinite(moments.mean)
    assert moments.mean == pytest.approx(0.97 * 0.03 * value, rel=1e-9, abs=0)
    assert moments.variance > 0


@PINNED
@given(st.lists(st.floats(min_value=1e-100, max_value=1e100), min_size=1, max_size=40))
def test_mean_and_population_variance_of_a_list(values):
    mean, variance = mean_and_variance(values)
    exact = pvariance(map(Fraction, values))
    rounding = (1e-15 * max(values)) ** 2
    assert mean == pytest.approx(fmean(values), rel=1e-15, abs=0)
    assert variance == pytest.approx(float(exact), rel=1e-12, abs=rounding)


@pytest.mark.parametrize("value", [1e155, 1.7e308])
def test_mean_and_variance_of_the_largest_floats_are_finite(value):
    assert mean_and_variance([value] * 3)[0] == pytest.approx(value, rel=1e-15, abs=0)
    assert all(isfinite(moment) for moment in mean_and_variance([value, 1.0, value]))


def test_mean_and_variance_of_the_tiniest_and_of_far_apart_values():
    assert mean_and_variance([5e-324]) == (5e-324, 0.0)
    mean, variance = mean_and_variance([1e155, 1.0, 1e155])
    assert mean == pytest.approx(2e155 / 3)
    assert 1e308 < variance < float("inf")
