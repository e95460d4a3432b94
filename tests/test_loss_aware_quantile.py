from math import exp, nan

import numpy as np
import pytest

from autoclip.policies import LossAwareQuantile, RunningQuantile
from tests.references import loss_aware_thresholds, running_quantile_thresholds
from tests.streams import follow, loss_stream, norm_streams

STEPS = 5000
STREAMS = ["lognormal", "drift up", "drift down", "spikes"]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"percentile": 90, "rate": 0.05, "cut": 0.8},
        {"fast": 0.9, "slow": 0.99, "start": 0.1},
        {"floor": 1e-6},
    ],
)
@pytest.mark.parametrize("stream", STREAMS)
def test_thresholds_equal_the_oracle(stream, parameters):
    norms, losses = norm_streams(STEPS, seed=5)[stream], loss_stream(STEPS)
    thresholds = follow(LossAwareQuantile(**parameters), norms, losses)
    assert thresholds == pytest.approx(loss_aware_thresholds(norms, losses, **parameters), rel=1e-9, abs=0)


@pytest.mark.parametrize("missing", [None, nan])
def test_steps_without_a_loss_are_not_cut_and_do_not_move_its_averages(missing):
    norms, losses = norm_streams(STEPS, seed=7)["lognormal"], loss_stream(STEPS)
    gaps = np.random.default_rng(8).random(STEPS) < 0.3
    gaps[:3] = True  # the averages begin at the first loss there is
    given = [missing if gap else loss for gap, loss in zip(gaps, losses, strict=True)]
    known = [None if gap else loss for gap, loss in zip(gaps, losses, strict=True)]
    assert follow(LossAwareQuantile(), norms, given) == pytest.approx(
        loss_aware_thresholds(norms, known), rel=1e-9, abs=0
    )


def test_without_any_loss_it_is_the_running_quantile_with_a_slow_start():
    norms = norm_streams(STEPS, seed=9)["lognormal"]
    thresholds = follow(LossAwareQuantile(), norms)
    assert thresholds == pytest.approx(loss_aware_thresholds(norms, [None] * STEPS), rel=1e-9, abs=0)


def test_with_a_warmup_and_no_loss_it_is_the_running_quantile():
    norms = norm_streams(STEPS, seed=9)["lognormal"]
    thresholds = follow(LossAwareQuantile(90, 0.2, warmup_steps=50), norms)
    assert thresholds == follow(RunningQuantile(90, 0.2, warmup_steps=50), norms)
    assert thresholds[50:] == pytest.approx(running_quantile_thresholds(norms, 90, 0.2, 50), rel=1e-9, abs=0)


def test_the_first_step_is_clipped_to_the_start_share_of_its_own_norm():
    policy = LossAwareQuantile()
    assert policy.inclusive
    assert follow(policy, [10.0, 10.0, 10.0]) == pytest.approx([3.0, 3.0, 3.0 * exp(0.05)], rel=1e-12, abs=0)
    assert not policy.inclusive


def test_a_useless_first_norm_leaves_the_slow_start_to_the_next():
    policy = LossAwareQuantile()
    policy.observe(nan)
    policy.observe(0.0)
    assert policy.inclusive
    assert follow(policy, [10.0]) == pytest.approx([3.0], rel=1e-12, abs=0)


def test_a_falling_loss_cuts_nothing_and_a_rising_one_cuts_every_step():
    norms = [1.0] + [1e9] * 20
    falling = follow(LossAwareQuantile(), norms, [10.0 - 0.1 * step for step in range(21)])
    rising = follow(LossAwareQuantile(floor=1e-6), norms, [10.0 + 0.1 * step for step in range(21)])
    assert falling == pytest.approx([0.3, *(0.3 * exp(0.05 * step) for step in range(20))], rel=1e-9, abs=0)
    assert rising == pytest.approx([0.3, *(0.3 * (0.9 * exp(0.05)) ** step for step in range(20))], rel=1e-9, abs=0)


def test_a_noisy_plateau_does_not_carry_the_threshold_away_and_it_recovers():
    generator = np.random.default_rng(10)
    norms = np.exp(generator.normal(0, 0.5, 20_000)).tolist()
    plateau = (2 + 0.1 * generator.standard_normal(20_000)).tolist()
    policy = LossAwareQuantile()
    thresholds = follow(policy, norms, plateau)
    assert min(thresholds) > 0.05
    assert max(thresholds[1000:]) < 1.5
    recovered = follow(policy, norms[:100], [2 * 0.99**step for step in range(100)])
    assert recovered[-1] > 0.5


def test_a_rising_loss_lowers_the_threshold_to_the_floor_and_no_further():
    norms = norm_streams(2000, seed=11)["lognormal"]
    thresholds = follow(LossAwareQuantile(), norms, [1 + 0.01 * step for step in range(2000)])
    median = float(np.median(norms))
    assert 0.05 * median < min(thresholds[100:])
    assert max(thresholds[100:]) < 0.3 * median


def test_a_cut_of_one_ignores_the_loss():
    norms = norm_streams(500)["lognormal"]
    assert follow(LossAwareQuantile(cut=1), norms, loss_stream(500)) == follow(LossAwareQuantile(cut=1), norms)


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_the_scale_of_the_loss_does_not_matter(factor):
    norms, losses = norm_streams(500)["lognormal"], loss_stream(500)
    scaled = [loss * factor for loss in losses]
    assert follow(LossAwareQuantile(), norms, scaled) == follow(LossAwareQuantile(), norms, losses)


def test_it_restarts_from_a_state_taken_before_the_first_norm():
    policy = LossAwareQuantile()
    resumed = policy.clone()
    resumed.load_state_dict(policy.state_dict())
    assert follow(resumed, [10.0, 8.0]) == follow(policy, [10.0, 8.0])


def test_the_smallest_norm_there_is_gives_a_positive_threshold():
    policy = LossAwareQuantile()
    policy.observe(5e-324)
    assert policy.threshold() > 0
