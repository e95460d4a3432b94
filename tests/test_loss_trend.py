from math import inf

import numpy as np
import pytest

from autoclip.statistics import LossTrend


def follow(trend, losses):
    for loss in losses:
        trend.update(loss)
    return trend


def by_hand(losses, limit):
    """Fast and slow average, deviation and its weight, with plain sums over the whole history."""
    expected, surprises = losses[0], []
    heard = [losses[0]]
    for loss in losses[1:]:
        surprise = loss - expected
        ages = np.arange(len(surprises))[::-1]
        weight = 1 - 0.97 ** len(surprises)
        if len(surprises) >= 10:
            most = limit * np.sqrt(0.03 * np.sum(0.97**ages * np.square(surprises)) / weight)
            surprise = float(np.clip(surprise, -most, most))
        surprises.append(surprise)
        heard.append(expected + surprise)
        expected = 0.97 * expected + 0.03 * heard[-1]
    ages = np.arange(len(surprises))[::-1]
    deviation = np.sqrt(0.03 * np.sum(0.97**ages * np.square(surprises)))
    fast = heard[0]
    for loss in heard[1:]:
        fast = 0.8 * fast + 0.2 * loss
    return [fast, expected, float(deviation), 1 - 0.97 ** len(surprises)]


@pytest.mark.parametrize("limit", [inf, 3.0, 0.5])
@pytest.mark.parametrize("count", [2, 10, 11, 12, 80])
def test_it_is_what_its_docstring_says(limit, count):
    losses = (3 + np.random.default_rng(1).standard_t(2, count)).tolist()
    trend = follow(LossTrend(limit=limit), losses)
    assert trend.state_dict() == pytest.approx(by_hand(losses, limit), rel=1e-9)


def test_before_two_losses_nothing_rises_or_falls():
    trend = LossTrend()
    assert (trend.rises(0.0), trend.falls(0.0)) == (False, False)
    trend.update(3.0)
    assert (trend.rises(0.0), trend.falls(0.0)) == (False, False)


@pytest.mark.parametrize(("limit", "rises"), [(inf, 2), (3.0, 0)])
def test_one_wild_loss_is_no_rise_where_it_is_limited(limit, rises):
    noise = np.random.default_rng(2).normal(0, 1, 240)
    trend, count = follow(LossTrend(limit=limit), noise[:200]), 0
    for loss in (1e6, *noise[200:]):
        trend.update(loss)
        count += trend.rises(0.75)
    assert count == rises


def test_two_wild_losses_in_a_row_are_a_rise():
    noise = np.random.default_rng(2).normal(0, 1, 200)
    assert follow(LossTrend(limit=3.0), [*noise, 1e6, 1e6]).rises(0.75)


def test_noise_alone_rises_in_less_than_one_step_of_two_hundred():
    trend, count = LossTrend(limit=3.0), 0
    for loss in np.random.default_rng(3).normal(0, 1, 20_000):
        trend.update(loss)
        count += trend.rises(0.75)
    assert 0 < count < 100


@pytest.mark.parametrize("wild", [8e307, 1e-320])
def test_losses_at_the_end_of_the_floats_leave_a_finite_state(wild):
    trend = follow(LossTrend(limit=3.0), [wild * (-1) ** step for step in range(60)])
    assert np.isfinite(trend.state_dict()).all()


def test_it_continues_from_a_state_exactly():
    losses = np.random.default_rng(4).normal(0, 1, 100).tolist()
    resumed = LossTrend(limit=3.0)
    resumed.load_state_dict(follow(LossTrend(limit=3.0), losses[:50]).state_dict())
    assert follow(resumed, losses[50:]).state_dict() == follow(LossTrend(limit=3.0), losses).state_dict()


def test_a_state_of_another_length_is_refused():
    with pytest.raises(ValueError, match="none or four numbers"):
        LossTrend().load_state_dict([1.0, 2.0])
