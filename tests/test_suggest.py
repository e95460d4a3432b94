"""From logged norms to a setting."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from autoclip.errors import UsageError
from autoclip.traces import NormTrace
from autoclip.tuning.suggest import effective_count, suggest


def trace(norms, *, every=1, **options):
    return NormTrace(steps=np.arange(len(norms)) * every, norms=np.asarray(norms, float), source="a log", **options)


def lognormal(count, seed=0, deviation=0.5):
    return np.random.default_rng(seed).lognormal(0.0, deviation, count)


def test_percentiles_are_numpys_and_their_intervals_cover_the_truth():
    """95 % intervals of independent lognormal norms, 300 logs: covered .92 to .98 of the time."""
    covered = dict.fromkeys((10, 50, 90, 95), 0)
    for seed in range(300):
        norms = lognormal(400, seed)
        found = suggest(trace(norms)).percentiles
        for percentile in covered:
            assert found[percentile].value == pytest.approx(np.percentile(norms, percentile))
            truth = stats.lognorm.ppf(percentile / 100, 0.5)
            covered[percentile] += found[percentile].low <= truth <= found[percentile].high
    assert all(0.92 <= count / 300 <= 0.99 for count in covered.values()), covered


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


def test_what_fixed_thresholds_would_clip():
    found = suggest(trace([0.5] * 50 + [3.0] * 30 + [7.0] * 15 + [20.0] * 5)).fixed
    assert {limit: one.value for limit, one in found.items()} == {1.0: 0.5, 5.0: 0.2, 10.0: 0.05}
    assert all(one.low < one.value < one.high for one in found.values())


@pytest.mark.parametrize(("factor", "drifts"), [(1.0, False), (100.0, True), (0.01, True), (1.2, False)])
def test_drift_is_told_from_noise(factor, drifts):
    norms = lognormal(2000, seed=3) * factor ** np.linspace(0, 1, 2000)
    drift = suggest(trace(norms)).drift
    assert drift.is_there == drifts
    assert drift.ratio == pytest.approx(factor**0.8, rel=0.15)


def test_a_constant_does_not_drift():
    drift = suggest(trace([2.0] * 100)).drift
    assert (drift.ratio, drift.tau, drift.p_value) == (1.0, 0.0, 1.0)


def test_calm_norms_lose_a_tenth_and_wild_ones_get_the_default():
    calm = suggest(trace(lognormal(1000, deviation=0.3)))
    assert calm.policy == {"kind": "running_quantile", "percentile": 90}
    assert "nothing stands out" in calm.reason
    for wild in (lognormal(1000, deviation=1.0), [*lognormal(500, deviation=0.1), 50.0, *[1.0] * 100]):
        found = suggest(trace(wild))
        assert found.policy == {"kind": "loss_aware_quantile"}
        assert "large steps occur" in found.reason
    broken = lognormal(1000, deviation=0.3)
    broken[500] = np.nan
    assert suggest(trace(broken)).policy["kind"] == "loss_aware_quantile"
    assert "1 are not finite" in suggest(trace(broken)).reason


def test_calm_norms_of_a_training_that_is_stuck_get_the_default():
    norms = lognormal(1000, deviation=0.3)
    falls, stays = np.linspace(3, 1, 1000), np.full(1000, 2.3)
    assert suggest(trace(norms, losses=falls)).policy["kind"] == "running_quantile"
    stuck = suggest(trace(norms, losses=stays))
    assert stuck.policy["kind"] == "loss_aware_quantile"
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
