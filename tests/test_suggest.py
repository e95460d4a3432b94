"""From logged norms to a setting."""

import json
import math

import numpy as np
import pytest
from scipy import signal, stats

from autoclip import Fixed, replay
from autoclip.errors import UsageError
from autoclip.traces import NormTrace
from autoclip.tuning.suggest import PERCENTILES, effective_count, interval_ranks, suggest


def trace(norms, *, every=1, **options):
    return NormTrace(steps=np.arange(len(norms)) * every, norms=np.asarray(norms, float), source="a log", **options)


def lognormal(count, seed=0, deviation=0.5):
    return np.random.default_rng(seed).lognormal(0.0, deviation, count)


def covered(logs):
    """Percentile -> share of logs of lognormal norms in whose interval it lies."""
    found = [suggest(trace(norms)).percentiles for norms in logs]
    truth = {percentile: stats.lognorm.ppf(percentile / 100, 0.5) for percentile in PERCENTILES}
    return {
        percentile: sum(one[percentile].low <= truth[percentile] <= one[percentile].high for one in found) / len(found)
        for percentile in PERCENTILES
    }


def test_percentiles_are_numpys():
    norms = lognormal(400)
    for percentile, found in suggest(trace(norms)).percentiles.items():
        assert found.value == pytest.approx(np.percentile(norms, percentile))
        assert found.low < found.value < found.high


@pytest.mark.parametrize("count", [50, 200, 500])
def test_intervals_cover_the_truth_as_often_as_they_promise(count):
    """95 % intervals of independent norms, 300 logs: a promise that is kept shows as .925 with a chance of 2 %."""
    shares = covered(lognormal(count, seed) for seed in range(300))
    assert min(shares.values()) > 0.925, shares


def test_intervals_of_norms_that_resemble_their_neighbours_cover_the_truth_too():
    def correlated(seed, count=500, coefficient=0.9):
        noise = np.random.default_rng(seed).standard_normal(count) * math.sqrt(1 - coefficient**2)
        noise[0] /= math.sqrt(1 - coefficient**2)
        return np.exp(0.5 * signal.lfilter([1.0], [1.0, -coefficient], noise))

    shares = covered(correlated(seed) for seed in range(300))
    assert min(shares.values()) > 0.925, shares


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


def test_an_end_that_no_norm_marks_is_unknown():
    """369 independent norms are the fewest of which the largest lies above percentile 99 with 97.5 %."""
    found = suggest(trace(lognormal(200)))
    outer = found.percentiles[99]
    assert (outer.high, str(outer)[-10:]) == (math.inf, ", unknown]")
    assert found.as_json()["percentiles"]["99"]["high"] is None
    assert found.percentiles[95].high < math.inf
    few = suggest(trace(lognormal(25))).percentiles[10]
    assert (few.low, few.high < few.value * 3) == (0, True)


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


def test_what_fixed_thresholds_would_clip():
    found = suggest(trace([0.5] * 50 + [3.0] * 30 + [7.0] * 15 + [20.0] * 5)).fixed
    assert {limit: one.value for limit, one in found.items()} == {1.0: 0.5, 5.0: 0.2, 10.0: 0.05}
    assert all(one.low < one.value < one.high for one in found.values())


def test_what_a_fixed_threshold_would_clip_is_the_clip_rate_of_its_replay():
    norms = [*([0.5] * 50), math.nan, 3.0, 0.0, 7.0, math.inf, *([20.0] * 5), 10.0, 5.0]
    for limit, share in suggest(trace(norms)).fixed.items():
        assert share.value == replay(norms, Fixed(limit)).clip_rate


@pytest.mark.parametrize(("factor", "drifts"), [(1.0, False), (100.0, True), (0.01, True), (1.2, False)])
def test_drift_is_told_from_noise(factor, drifts):
    norms = lognormal(2000, seed=3) * factor ** np.linspace(0, 1, 2000)
    drift = suggest(trace(norms)).drift
    assert drift.is_there == drifts
    assert drift.ratio == pytest.approx(factor**0.8, rel=0.15)


def test_a_large_change_that_may_be_chance_is_not_called_little():
    levels = np.array([10, 10, 1, 4, 6, 4, 6, 1, 2, 2.0])
    found = suggest(trace(np.repeat(levels, 30) * lognormal(300, deviation=0.05)))
    assert found.drift.ratio == pytest.approx(0.2, rel=0.05)
    assert 0.01 < found.drift.p_value < 0.1
    assert "not drift much" not in found.reason
    assert "(down), though not steadily enough to tell a trend from chance" in found.reason
    assert "the norms do not drift much" in suggest(trace(lognormal(2000))).reason


@pytest.mark.parametrize("last", [-300, 300])
def test_a_drift_beyond_every_float_is_one(last):
    found = suggest(trace(np.logspace(-last, last, 400)))
    assert found.drift.is_there
    assert found.drift.log_ratio == pytest.approx(math.log(10) * 2 * last * 0.8, rel=0.01)
    assert found.drift.ratio == pytest.approx(10 ** math.copysign(304, last), rel=0.02)
    assert f"a factor of 1e+304 ({'up' if last > 0 else 'down'})" in found.reason
    json.dumps(found.as_json(), allow_nan=False)


def test_a_constant_does_not_drift():
    drift = suggest(trace([2.0] * 100)).drift
    assert (drift.ratio, drift.tau, drift.p_value) == (1.0, 0.0, 1.0)


def test_calm_norms_lose_a_tenth_and_wild_ones_get_the_default():
    calm = suggest(trace(lognormal(1000, deviation=0.3)))
    assert calm.policy == {"kind": "running_quantile", "percentile": 90}
    assert "nothing stands out" in calm.reason
    for wild in (lognormal(1000, deviation=1.0), [*lognormal(500, deviation=0.1), 50.0, *[1.0] * 100]):
        found = suggest(trace(wild))
        assert found.policy == {"kind": "probing_quantile"}
        assert "large steps occur" in found.reason
    broken = lognormal(1000, deviation=0.3)
    broken[500] = np.nan
    assert suggest(trace(broken)).policy["kind"] == "probing_quantile"
    assert "1 are not finite" in suggest(trace(broken)).reason


def test_calm_norms_of_a_training_that_is_stuck_get_the_default():
    norms = lognormal(1000, deviation=0.3)
    falls, stays = np.linspace(3, 1, 1000), np.full(1000, 2.3)
    assert suggest(trace(norms, losses=falls)).policy["kind"] == "running_quantile"
    stuck = suggest(trace(norms, losses=stays))
    assert stuck.policy["kind"] == "probing_quantile"
    assert "training may be stuck" in stuck.reason
    assert any("the loss hardly falls (median of the first fifth 2.3, of the last 2.3)" in one for one in stuck.doubts)
    unknown = np.full(1000, np.nan)
    assert suggest(trace(norms, losses=unknown)).policy == suggest(trace(norms)).policy
    assert suggest(trace(norms, losses=falls - 10)).doubts == suggest(trace(norms)).doubts  # below zero


def test_spikes_are_counted():
    norms = 1 + 0.01 * np.random.default_rng(0).standard_normal(1000)
    norms[[400, 700]] = 5.0
    found = suggest(trace(norms))
    assert found.spikes.value == 2 / 1000
    assert "2 of 1000 norms are spikes" in found.reason


def test_useless_norms_are_counted_and_left_out():
    found = suggest(trace([1.0, 2.0] * 20 + [0.0, np.nan, np.inf]))
    assert (found.count, found.zero, found.nonfinite) == (40, 1, 2)
    assert any("2 of 43 norms are not finite" in doubt for doubt in found.doubts)


def test_norms_after_clipping_betray_themselves():
    clipped = np.minimum(lognormal(500), 1.0)
    assert any("norms after clipping at 1" in doubt for doubt in suggest(trace(clipped)).doubts)
    assert any("all norms are 1" in doubt for doubt in suggest(trace([1.0] * 50)).doubts)
    assert not any("after clipping" in doubt for doubt in suggest(trace(lognormal(500))).doubts)


def test_norms_of_scaled_gradients_betray_themselves():
    assert any("GradScaler" in doubt for doubt in suggest(trace(lognormal(500) * 65536)).doubts)
    assert not any("GradScaler" in doubt for doubt in suggest(trace(lognormal(500))).doubts)


def test_a_sparse_log_is_said_to_miss_what_lies_between():
    found = suggest(trace(lognormal(500), every=50))
    assert any(doubt.startswith("one step in 50 was logged") and "98%" in doubt for doubt in found.doubts)


def test_few_independent_norms_are_said():
    walk = np.exp(np.random.default_rng(0).standard_normal(300).cumsum() / 5)
    assert any("resemble each other" in doubt for doubt in suggest(trace(walk)).doubts)


@pytest.mark.parametrize("norms", [[1.0] * 19, [0.0] * 100, [math.nan] * 100 + [1.0] * 5])
def test_too_few_norms_tell_nothing(norms):
    with pytest.raises(UsageError, match=r"a log: \d+ finite norms above zero are too few"):
        suggest(trace(norms))


def test_a_refusal_tells_what_was_noted_of_the_log():
    with pytest.raises(UsageError, match=r"are too few to tell anything, .*; note: a torn end; note: a restart$"):
        suggest(trace([1.0] * 3, notes=("a torn end", "a restart")))


def test_unknown_steps_have_no_stride():
    found = suggest(trace(lognormal(100), every=10, has_steps=False))
    assert found.as_json()["stride"] is None
    assert not any("step in" in doubt for doubt in found.doubts)


def test_it_is_the_same_in_any_unit():
    one, other = suggest(trace(lognormal(500))), suggest(trace(lognormal(500) * 1024.0))
    assert one.policy == other.policy
    assert other.percentiles[90].high == pytest.approx(1024.0 * one.percentiles[90].high)
    assert other.drift.ratio == pytest.approx(one.drift.ratio)


def test_json_holds_everything():
    found = json.loads(json.dumps(suggest(trace(lognormal(100), notes=("torn",))).as_json(), allow_nan=False))
    assert found["percentiles"]["50"].keys() == {"value", "low", "high"}
    assert found["recommended"] == {"policy": {"kind": "running_quantile", "percentile": 90}}
    assert found["notes"] == ["torn"]
    assert (found["norms"], found["stride"]) == (100, 1)
