"""From logged norms to a setting."""

import json
import math
import re

import numpy as np
import pytest
from scipy import signal, stats

from autoclip import Fixed, replay
from autoclip.traces import NormTrace
from autoclip.tuning.suggest import PERCENTILES, NoAdviceError, suggest, suggest_each


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


def test_an_end_that_no_norm_marks_is_unknown():
    """369 independent norms are the fewest of which the largest lies above percentile 99 with 97.5 %."""
    found = suggest(trace(lognormal(200)))
    outer = found.percentiles[99]
    assert (outer.high, outer.span(".3g")[-11:]) == (math.inf, " to unknown")
    assert found.as_json()["percentiles"]["99"]["high_is"] == "inf"
    assert found.percentiles[95].high < math.inf
    few = suggest(trace(lognormal(25))).percentiles[10]
    assert (few.low, few.high < few.value * 3) == (0, True)


def test_what_fixed_thresholds_would_clip():
    found = suggest(trace([0.5] * 50 + [3.0] * 30 + [7.0] * 15 + [20.0] * 5)).fixed
    assert {limit: one.value for limit, one in found.items()} == {1.0: 0.5, 5.0: 0.2, 7.0: 0.05, 10.0: 0.05}
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
    assert "(down), but not steadily enough to tell a trend from chance" in found.reason
    assert "the median norm" not in suggest(trace(lognormal(2000))).reason


@pytest.mark.parametrize("last", [-300, 300])
def test_a_drift_beyond_every_float_is_one(last):
    found = suggest(trace(np.logspace(-last, last, 400)))
    assert found.drift.is_there
    assert found.drift.log_ratio == pytest.approx(math.log(10) * 2 * last * 0.8, rel=0.01)
    assert found.drift.ratio == pytest.approx(10 ** math.copysign(304, last), rel=0.02)
    assert f"a factor of 1e+304 ({'up' if last > 0 else 'down'})" in found.reason
    json.dumps(found.as_json(), allow_nan=False)


def test_calm_norms_lose_a_tenth_and_wild_ones_get_the_default():
    calm = suggest(trace(lognormal(1000, deviation=0.3)))
    assert calm.policy == {"kind": "running_quantile", "percentile": 90}
    assert calm.reason.startswith(
        "none of 1000 norms is a spike (1 % of the norms are above 2 times their running median, "
    )
    for wild in (lognormal(1000, deviation=1.0), [*lognormal(500, deviation=0.1), 50.0, *[1.0] * 100]):
        found = suggest(trace(wild))
        assert found.policy == {"kind": "probing_quantile"}
        assert "large norms occur" in found.reason
    broken = lognormal(1000, deviation=0.3)
    broken[500] = np.nan
    assert suggest(trace(broken)).policy["kind"] == "probing_quantile"
    assert suggest(trace(broken)).reason.startswith("1 of 1000 norms is not finite: take autoclip's default")


def test_norms_of_scaled_gradients_betray_themselves():
    assert any("GradScaler" in doubt for doubt in suggest(trace(lognormal(500) * 65536)).doubts)
    assert not any("GradScaler" in doubt for doubt in suggest(trace(lognormal(500))).doubts)


def test_a_sparse_log_is_said_to_miss_what_lies_between():
    found = suggest(trace(lognormal(500), every=50))
    said = "one step in 50 was logged: spikes and non-finite norms in the other 49 of 50 are not seen"
    assert any(doubt.startswith(said) for doubt in found.doubts)


def test_a_refusal_tells_what_was_noted_of_the_log():
    with pytest.raises(NoAdviceError, match=r": advice needs at least 20 \(a torn end; a restart\)$"):
        suggest(trace([1.0] * 3, notes=("a torn end", "a restart")))


def test_unknown_steps_have_no_stride():
    found = suggest(trace(lognormal(100), every=10, has_steps=False))
    assert found.as_json()["stride"] is None
    assert not any("step in" in doubt for doubt in found.doubts)
    assert found.trace.place(30) == "count 30"


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


def test_a_loss_that_does_not_fall_leads_to_the_default_and_is_said_as_it_was_seen():
    norms = lognormal(1000, deviation=0.3)
    falls, stays = np.linspace(3, 1, 1000), 2.3 + 0.01 * np.sin(np.arange(1000))
    assert suggest(trace(norms, losses=falls)).policy["kind"] == "running_quantile"
    stuck = suggest(trace(norms, losses=stays))
    assert stuck.policy["kind"] == "probing_quantile"
    assert "falls (median of the first fifth 2.3, of the last 2.3): take autoclip's default" in stuck.reason
    assert "stuck" not in str(stuck.as_json())
    assert suggest(trace(norms, losses=falls - 10)).doubts == suggest(trace(norms)).doubts  # below zero


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (np.full(300, np.nan), None),
        (np.zeros(300), "the logged loss never changes (0 in 300 steps)"),
        (np.full(300, 2.3), "the logged loss never changes (2.3 in 300 steps)"),
        (np.random.default_rng(0).normal(0, 0.01, 300), "the loss lies about zero ("),
        (np.where(np.arange(300) % 3, 0.0, 1e-4), "the loss is zero in 200 of 300 steps"),
    ],
)
@pytest.mark.parametrize(("deviation", "kind"), [(0.3, "running_quantile"), (1.0, "probing_quantile")])
def test_a_loss_that_tells_nothing_leads_to_no_advice_about_losses(losses, said, deviation, kind):
    norms = lognormal(300, deviation=deviation)
    found = suggest(trace(norms, losses=losses))
    assert not found.loss.is_usable
    assert (found.policy, found.reason) == (suggest(trace(norms)).policy, suggest(trace(norms)).reason)
    assert found.policy["kind"] == kind
    assert "loss" not in found.reason
    assert [doubt for doubt in found.doubts if "loss" in doubt] == [
        doubt for doubt in found.doubts if said and doubt.startswith(said)
    ]
    assert any("loss" in doubt for doubt in found.doubts) == (said is not None)


def test_spikes_are_counted():
    norms = 1 + 0.01 * np.random.default_rng(0).standard_normal(1000)
    norms[[4, 5, 700]] = 5.0, 5000.0, 6.0
    found = suggest(trace(norms))
    assert found.spikes.value == 3 / 1000
    assert "3 of 1000 norms are spikes" in found.reason
    assert "the largest norm is 5,0" in found.reason
    assert found.as_json()["spikes"]["tested"] == 1000


@pytest.mark.parametrize("at", [0, 7, 60, 119])
def test_one_norm_far_out_is_found_wherever_it_lies(at):
    norms = lognormal(120, deviation=0.25)
    norms[at] = 0
    norms[at] = 1471 * np.median(norms[norms > 0])
    found = suggest(trace(norms))
    assert found.policy["kind"] == "probing_quantile"
    assert "large norms occur (1 of 120 norms is a spike" in found.reason
    assert re.search(r"1,4[67]\d times the median of all", found.reason)


def test_a_spike_of_half_as_much_again_is_no_large_step():
    norms = lognormal(1000, deviation=0.05)
    norms[600] = 1.5
    found = suggest(trace(norms))
    assert found.policy["kind"] == "running_quantile"
    assert "none of 1000 norms is a spike" in found.reason


def test_a_drift_is_no_tail_and_is_not_counted_as_memory():
    norms = lognormal(2811, deviation=0.2) * np.geomspace(30, 1, 2811)
    found = suggest(trace(norms))
    assert found.drift.is_there
    assert "large steps" not in found.reason
    assert found.effective_count > 2000
    assert not [doubt for doubt in found.doubts if "resemble" in doubt]


@pytest.mark.parametrize("seed", range(20))
def test_independent_norms_are_not_said_to_be_worth_as_many_as_they_are(seed):
    assert not [doubt for doubt in suggest(trace(lognormal(30, seed, 0.25))).doubts if "worth" in doubt]


def test_few_independent_norms_are_said():
    slow = np.repeat(lognormal(40, deviation=0.3), 5)
    (doubt,) = suggest(trace(slow)).doubts
    assert re.match(r"the 200 norms are worth at most about [345]\d independent ones, as neighbours resemble", doubt)


def test_useless_norms_are_counted_and_left_out():
    found = suggest(trace([1.0, 2.0] * 20 + [0.0, np.nan, np.inf]))
    assert (found.count, found.zero, found.nonfinite) == (40, 1, 2)
    said = "1 of 43 norms is NaN, 1 of 43 norms is infinite; autoclip leaves such steps out (on_nonfinite: skip)"
    assert found.doubts == [said, "1 of 43 norms is zero, and left out"]


def test_a_training_that_broke_down_is_said_to():
    norms = np.concatenate([lognormal(120, deviation=0.25), np.full(180, np.nan)])
    found = suggest(trace(norms))
    (doubt,) = found.doubts
    assert doubt.startswith(
        "the training broke down at step 120: all 180 norms from there on are NaN; first find out why"
    )
    assert f"the largest one logged before is {found.largest_ratio:.2g} times the median" in doubt
    assert found.reason.startswith("a training that broke down once may do so again: take autoclip's default")
    norms[50] = np.inf
    assert "180 of 300 norms are NaN, 1 of 300 norms is infinite" in suggest(trace(norms)).doubts[1]
    assert not [one for one in suggest(trace(norms[:125])).doubts if "broke down" in one]


@pytest.mark.parametrize(
    ("norms", "reason"),
    [
        ([math.nan] * 40, "40 of 40 norms are NaN"),
        ([0.0] * 47 + [1.0, 3.0], "47 of 49 norms are zero; 2 finite norms above zero (median 2, largest 3)"),
        ([0.0] * 100, "100 of 100 norms are zero"),
        ([math.nan] * 100 + [1.0] * 5, "100 of 105 norms are NaN; 5 finite norms above zero (median 1, largest 1)"),
        ([*[1.0] * 18, 7.0], "19 finite norms above zero (median 1, largest 7): advice needs at least 20"),
    ],
)
def test_a_log_without_advice_has_the_figures_that_can_be_given(norms, reason):
    with pytest.raises(NoAdviceError, match=re.escape(f"a log: {reason}")) as caught:
        suggest(trace(norms))
    figures = json.loads(json.dumps(caught.value.figures, allow_nan=False))
    assert figures["norms"] + figures["zero"] + figures["nonfinite"] == len(norms)
    assert suggest_each([trace(norms)])[1][0].figures == caught.value.figures


def test_norms_after_clipping_get_no_advice_but_how_to_log():
    clipped = np.minimum(lognormal(500), 1.0)
    for norms, said in ((clipped, "48% of the norms lie within .1 % of the largest, 1"), ([1.0] * 50, "all 50 norms")):
        with pytest.raises(NoAdviceError, match=f"{said}.*look like norms after clipping.*log the norm before"):
            suggest(trace(norms))


@pytest.mark.parametrize("norms", [lognormal(500), lognormal(20), np.round(lognormal(400, deviation=0.2), 1)])
def test_a_maximum_that_occurs_once_or_by_rounding_is_no_sign_of_clipping(norms):
    assert suggest(trace(norms)).count == len(norms)


@pytest.mark.parametrize("seed", range(20))
def test_the_number_is_percentile_90_in_few_digits(seed):
    norms = lognormal(20 + 40 * seed, seed, 0.01 + 0.1 * seed)
    number = suggest(trace(norms)).max_grad_norm
    low, high = sorted((number, np.percentile(norms, 90)))
    assert ((norms > low) & (norms <= high)).sum() <= max(1, len(norms) / 100)
    assert len(f"{number:.17g}".strip("0.")) <= 6 or number == float(f"{number:.5g}")
