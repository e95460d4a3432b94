"""What the norms and losses of a log show."""

import math

import numpy as np
import pytest

from autoclip.traces import NormTrace
from autoclip.tuning.log_findings import (
    broken_from,
    clipped_at,
    loss_of,
    running_median,
    tail_of,
    useless_norms,
    without_trend,
)


def trace(norms, losses=None):
    return NormTrace(10 * np.arange(len(norms)), np.asarray(norms, float), "a log", losses)


@pytest.mark.parametrize("window", [1, 20, 21, 101, 1000])
@pytest.mark.parametrize("count", [1, 2, 10, 23, 150])
def test_a_running_median_is_that_of_the_window_which_shrinks_at_both_ends(count, window):
    values = np.random.default_rng(count).normal(size=count)
    half = min(window // 2, (count - 1) // 2)
    expected = []
    for at in range(count):
        side = min(half, max(min(at, count - 1 - at), 5))
        expected.append(np.median(values[max(at - side, 0) : at + side + 1]))
    np.testing.assert_array_equal(running_median(values, window), expected)


def test_the_trend_of_a_short_log_is_its_running_median_and_that_of_a_long_one_is_close_to_it():
    for count in (1, 2, 20, 300, 2000):
        norms = np.random.default_rng(count).lognormal(0, 0.1, count) * np.geomspace(1, 5, count)
        expected = np.log(norms) - running_median(np.log(norms), count // 3)
        assert np.abs(without_trend(norms) - expected).max() < (1e-12 if count <= 300 else 0.1)


def test_what_is_left_without_an_exponential_trend_is_the_noise():
    noise = np.random.default_rng(0).lognormal(0, 0.1, 900)
    rest = without_trend(noise * np.geomspace(100, 1, 900))
    assert np.std(rest[50:-50]) == pytest.approx(0.1, rel=0.1)


def test_one_spike_does_not_hide_the_next_and_none_has_to_wait():
    norms = np.random.default_rng(0).lognormal(0, 0.1, 400)
    at = [0, 1, 30, 31, 32, 200, 399]
    norms[at] *= [4, 1e6, 4, 1e6, 4, 3.9, 50]
    assert np.flatnonzero(tail_of(norms).spikes).tolist() == at


@pytest.mark.parametrize("ends", [(1, 1000), (1000, 1)])
def test_a_drift_is_no_tail(ends):
    norms = np.random.default_rng(0).lognormal(0, 0.2, 1000) * np.geomspace(*ends, 1000)
    assert not tail_of(norms).is_large


def test_norms_that_are_equal_to_the_largest():
    assert clipped_at(np.array([0.5, 0.6, 0.7] * 6 + [1.0, 1.0])) is None, "two of twenty"
    assert clipped_at(np.array([*np.linspace(0.5, 0.9, 17), 1.0, 1.0, 1.0])) == 1.0
    assert clipped_at(np.array([0.1] * 15 + [0.2] * 10)) is None, "rounded"
    assert clipped_at(np.ones(20)) == 1.0


def test_useless_norms_are_counted():
    assert useless_norms(trace([1.0, 0.0])) == ["1 of 2 norms is zero"]
    assert useless_norms(trace([math.nan, math.inf, math.inf])) == [
        "1 of 3 norms is NaN",
        "2 of 3 norms are infinite",
    ]


def test_where_a_training_broke_down():
    assert broken_from(trace([1.0] * 5 + [math.nan] * 10)) == 50
    assert broken_from(trace([1.0] * 5 + [math.nan] * 9)) is None
    assert broken_from(trace([math.nan] * 30 + [1.0])) is None


@pytest.mark.parametrize(
    ("losses", "state"),
    [
        (None, "missing"),
        (np.append(np.ones(19), [math.nan] * 81), "missing"),
        (np.full(100, 2.0), "constant"),
        (np.where(np.arange(100) < 50, 0.0, 1e-3), "constant"),
        (np.sin(np.arange(100)), "about zero"),
        (np.linspace(0, 1e-3, 100), "about zero"),
        (np.linspace(2, 0, 100), "falls"),
        (np.linspace(-1, -2, 100), "falls"),
        (np.linspace(2, 3, 100), "does not fall"),
        (np.linspace(2, 1.95, 100), "does not fall"),
    ],
)
def test_what_losses_show(losses, state):
    assert loss_of(trace(np.ones(100), losses)).state == state
