from math import exp, nan

import numpy as np
import pytest

from autoclip.policies import LossAwareQuantile, RunningQuantile
from tests.references import loss_aware_thresholds, running_quantile_thresholds
from tests.streams import follow, loss_stream, norm_streams

STEPS = 1500
STREAMS = ["lognormal", "drift up", "drift down", "spikes", "small at first"]
MEDIAN = {"percentile": 50, "rate": 0.1, "cut": 0.9, "lift": 1, "margin": 0, "without_loss": 50}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        MEDIAN,
        {"percentile": 90, "rate": 0.05, "cut": 0.9, "without_loss": 90},
        {"fast": 0.9, "slow": 0.99, "start": 0.1},
        {"floor": 1e-6, "cut": 0.99},
        {"margin": 0, "lift": 1.5},
        {"slow": 0, "fast": 0, "margin": 0.1},
    ],
)
@pytest.mark.parametrize("stream", STREAMS)
def test_thresholds_equal_the_oracle(stream, parameters):
    streams = norm_streams(STEPS, seed=5)
    streams["small at first"] = [1e-3, *streams["lognormal"][1:]]
    norms, losses = streams[stream], loss_stream(STEPS)
    thresholds = follow(LossAwareQuantile(**parameters), norms, losses)
    assert thresholds == pytest.approx(loss_aware_thresholds(norms, losses, **parameters), rel=1e-9, abs=0)


@pytest.mark.parametrize("missing", [None, nan])
def test_steps_without_a_loss_do_not_move_the_averages(missing):
    norms, losses = norm_streams(STEPS, seed=7)["lognormal"], loss_stream(STEPS)
    gaps = np.random.default_rng(8).random(STEPS) < 0.3
    gaps[:3] = True  # the averages begin at the first loss there is
    given = [missing if gap else loss for gap, loss in zip(gaps, losses, strict=True)]
    known = [None if gap else loss for gap, loss in zip(gaps, losses, strict=True)]
    assert follow(LossAwareQuantile(), norms, given) == pytest.approx(
        loss_aware_thresholds(norms, known), rel=1e-9, abs=0
    )


def test_with_a_warmup_and_no_loss_it_is_the_running_quantile():
    norms = norm_streams(STEPS, seed=9)["lognormal"]
    thresholds = follow(LossAwareQuantile(90, 0.2, without_loss=90, warmup_steps=50), norms)
    assert thresholds == follow(RunningQuantile(90, 0.2, warmup_steps=50), norms)
    assert thresholds[50:] == pytest.approx(running_quantile_thresholds(norms, 90, 0.2, 50), rel=1e-9, abs=0)


def test_the_first_step_is_clipped_to_the_start_share_of_its_own_norm():
    policy = LossAwareQuantile(without_loss=50)
    assert policy.inclusive
    assert follow(policy, [10.0, 10.0, 10.0]) == pytest.approx([3.0, 3.0, 3.0 * exp(0.1)], rel=1e-12, abs=0)
    assert not policy.inclusive


@pytest.mark.parametrize("first", [1e-300, 1e-6, 1e-2, 0.09])
def test_a_first_norm_that_is_far_too_small_costs_ten_steps(first):
    """As of a batch of which nearly all was masked; the loss tells nothing."""
    thresholds = follow(LossAwareQuantile(), [first, *[1.0, 2.0] * 20], [1.0] * 41)
    assert max(thresholds[:10]) < 0.4 * first
    assert thresholds[10] == pytest.approx(0.3)
    assert thresholds[40] == pytest.approx(0.3 * exp(0.02 * 30), rel=1e-9)


@pytest.mark.parametrize("norms", [[1.0] * 2 + [1e6] * 7 + [1.0], [1.0] * 3 + [1e3**step for step in range(1, 8)]])
def test_an_explosion_after_the_first_norms_is_no_first_norm_that_was_too_small(norms):
    thresholds = follow(LossAwareQuantile(), [*norms, 1e6, 1e6], [1.0] * 12)
    assert max(thresholds) < 1


def test_a_useless_first_norm_leaves_the_slow_start_to_the_next():
    policy = LossAwareQuantile()
    policy.observe(nan)
    policy.observe(0.0)
    assert policy.inclusive
    assert follow(policy, [10.0]) == pytest.approx([3.0], rel=1e-12, abs=0)


def test_a_falling_loss_lifts_and_a_rising_one_cuts():
    norms = [1.0] + [9.0] * 20  # never below a threshold
    falling = follow(LossAwareQuantile(margin=0), norms, [10.0 - 0.1 * step for step in range(21)])
    rising = follow(LossAwareQuantile(margin=0, floor=1e-9), norms, [10.0 + 0.1 * step for step in range(21)])
    lifted = 1.1 * exp(0.2 * 0.1)
    assert falling == pytest.approx([0.3, *(0.3 * lifted**step for step in range(20))], rel=1e-9, abs=0)
    assert rising == pytest.approx([0.3, *(0.3 * (0.8 * exp(0.02)) ** step for step in range(20))], rel=1e-9, abs=0)


def test_in_the_first_steps_a_rise_counts_at_once():
    norms = [1.0] + [9.0] * 20  # never below a threshold
    falling = np.diff(np.log(follow(LossAwareQuantile(), norms, [10.0 - 0.1 * step for step in range(21)])))
    rising = np.diff(np.log(follow(LossAwareQuantile(floor=1e-9), norms, [10.0 + 0.1 * step for step in range(21)])))
    first_lift, first_cut = int(np.argmax(falling > 0.05)), int(np.argmax(rising < -0.05))
    assert first_cut == 1  # after the first loss there is to compare
    assert 4 <= first_lift <= 10


@pytest.mark.parametrize(("losses", "clipped"), [("falling", 0.61), ("plateau", 0.9)])
def test_the_share_of_clipped_steps_is_what_the_docstring_says(losses, clipped):
    random = np.random.default_rng(3)
    norms = random.lognormal(0.0, 0.5, 20_000)
    stream = {"falling": 1e3 * 0.9995 ** np.arange(20_000), "plateau": np.full(20_000, 2.0)}[losses]
    thresholds = np.asarray(follow(LossAwareQuantile(), norms.tolist(), stream.tolist()))
    assert float(np.mean(norms[2000:] > thresholds[2000:])) == pytest.approx(clipped, abs=0.01)


def test_a_noisy_plateau_neither_carries_the_threshold_away_nor_strangles_it():
    random = np.random.default_rng(10)
    norms = np.exp(random.normal(0, 0.5, 20_000))
    plateau = 2 + 0.1 * random.standard_normal(20_000)
    policy = LossAwareQuantile()
    thresholds = np.asarray(follow(policy, norms.tolist(), plateau.tolist()))
    assert np.quantile(thresholds[1000:], 0.1) > 0.25
    assert thresholds[1000:].max() < 1.2
    recovered = follow(policy, norms[:100].tolist(), [2 * 0.99**step for step in range(100)])
    assert recovered[-1] > 0.5


def test_a_rising_loss_lowers_the_threshold_to_the_floor_and_no_further():
    norms = norm_streams(2000, seed=11)["lognormal"]
    thresholds = follow(LossAwareQuantile(), norms, [1 + 0.01 * step for step in range(2000)])
    tenth = float(np.percentile(norms, 10))
    assert 0.03 * tenth < min(thresholds[100:])
    assert max(thresholds[100:]) < 0.4 * tenth


def test_one_wild_loss_cuts_for_a_few_steps_and_lifts_nothing_as_it_leaves():
    norms, quiet = [1.0] * 400, [2.0] * 400
    wild = [*quiet[:200], 200.0, *quiet[201:]]
    undisturbed, disturbed = follow(LossAwareQuantile(), norms, quiet), follow(LossAwareQuantile(), norms, wild)
    assert max(disturbed[202:220]) < 0.8 < min(undisturbed[202:220])
    assert max(disturbed[200:]) <= max(undisturbed)


@pytest.mark.parametrize(("factor", "shift"), [(2.0**-40, 0.0), (2.0**40, 0.0), (1.0, 1024.0), (1.0, -4096.0)])
def test_neither_the_scale_of_the_loss_nor_a_constant_matters(factor, shift):
    norms, losses = norm_streams(500)["lognormal"], loss_stream(500)
    moved = follow(LossAwareQuantile(), norms, [loss * factor + shift for loss in losses])
    assert moved == pytest.approx(follow(LossAwareQuantile(), norms, losses), rel=1e-12, abs=0)


def test_a_new_level_is_taken_without_the_slow_start():
    policy = LossAwareQuantile()
    follow(policy, [1.0] * 3)
    policy.relearn([50.0] * 20)
    assert policy.threshold() == 50.0
    assert max(follow(policy, [1e9] * 20)) < 200
