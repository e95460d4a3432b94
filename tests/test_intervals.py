"""Ranks and counts behind the intervals of percentiles."""

import numpy as np
import pytest
from scipy import stats

from autoclip.tuning.intervals import effective_count, interval_ranks


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("count", [20, 100, 368, 369, 3000])
def test_ranks_are_the_innermost_that_the_binomial_allows(count, share):
    low, high = interval_ranks(share, count, count)
    below = stats.binom(count, share)
    assert below.cdf(low - 1) < 0.025 <= below.cdf(low)
    assert below.sf(high - 1) <= 0.025 < below.sf(high - 2)
    assert interval_ranks(1 - share, count, count) == (count + 1 - high, count + 1 - low)


def test_ranks_of_values_that_are_worth_fewer_spread_over_all():
    low, high = interval_ranks(0.5, 10, 10.0)
    assert (low, high) == (2, 9)
    assert interval_ranks(0.5, 1000, 10.9) == (101, 900)
    assert interval_ranks(0.5, 1000, 1.0) == (0, 1001)


def test_norms_that_resemble_their_neighbours_are_worth_fewer():
    """An autoregressive series of coefficient r is worth (1 - r) / (1 + r) of its length."""
    random = np.random.default_rng(0)
    for coefficient in (0.0, 0.5, 0.9):
        values = [0.0]
        for noise in random.standard_normal(20_000):
            values.append(coefficient * values[-1] + noise)
        expected = 20_000 * (1 - coefficient) / (1 + coefficient)
        assert effective_count(np.array(values)) == pytest.approx(expected, rel=0.3)
    assert effective_count(np.ones(50)) == 50
    assert effective_count(np.tile([1.0, 2.0], 50)) == 100, "not fewer where neighbours differ"
