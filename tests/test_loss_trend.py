from math import inf

import numpy as np
import pytest

from autoclip.statistics import LossTrend


def follow(trend, losses):
    for loss in losses:
        trend.update(loss)
    return trend


def by_hand(losses, limit):
    """Both averages, deviation and its weight, extremes of the slow average, with plain sums over the whole history."""
    expected, surprises = losses[0], []
    heard, levels = [losses[0]], [losses[0]]
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
        levels.append(expected)
    ages = np.arange(len(surprises))[::-1]
    deviation = np.sqrt(0.03 * np.sum(0.97**ages * np.square(surprises)))
    fast = heard[0]
    for loss in heard[1:]:
        fast = 0.8 * fast + 0.2 * loss
    return [fast, expected, float(deviation), 1 - 0.97 ** len(surprises), max(levels), min(levels)]


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


@pytest.mark.parametrize(("limit", "rises"), [(inf, 2), (2.5, 0)])
def test_one_wild_loss_is_no_rise_where_it_is_limited(limit, rises):
    trend, count = follow(LossTrend(limit=limit), [1.0, -1.0] * 100), 0
    for loss in (1e6, *[1.0, -1.0] * 20):
        trend.update(loss)
        count += trend.rises(0.75 if limit == inf else 0.5)
    assert count == rises


def test_two_wild_losses_in_a_row_are_a_rise():
    noise = np.random.default_rng(2).normal(0, 1, 200)
    assert follow(LossTrend(limit=2.5), [*noise, 1e6, 1e6]).rises(0.5)


@pytest.mark.parametrize(
    ("margin", "fall", "share", "most"), [(0.75, 0, 0.0, 100), (0.5, 0, 0.0, 1600), (0.5, 20, 0.1, 0)]
)
def test_how_often_noise_alone_rises(margin, fall, share, most):
    """In 20 000 steps: by three quarters of a deviation seldom, by a half often, by a tenth of a long fall never."""
    trend, count = follow(LossTrend(limit=2.5), np.linspace(fall, 0, 100)), 0
    for loss in np.random.default_rng(3).normal(0, 1, 20_000):
        trend.update(loss)
        count += trend.rises(margin, share)
    assert most / 4 <= count <= most


def test_a_rise_that_undoes_a_share_of_the_fall_counts():
    trend = follow(LossTrend(), [*np.linspace(10, 0, 200), *[0.0] * 300])
    _, slow, _, _, highest, lowest = trend.state_dict()
    assert (highest, lowest) == pytest.approx((10, slow), abs=0.01)
    low, high = follow(LossTrend(), [*np.linspace(10, 0, 200), *[0.0] * 300, *[1.3] * 10]), trend
    follow(high, [2.0] * 10)
    assert (low.rises(0.5, 0.1), high.rises(0.5, 0.1)) == (False, True)


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
    with pytest.raises(ValueError, match="none or six numbers"):
        LossTrend().load_state_dict([1.0, 2.0])
