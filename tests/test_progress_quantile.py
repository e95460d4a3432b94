from math import exp, log, nan

import numpy as np
import pytest

from autoclip.policies import ProgressQuantile, RunningQuantile
from tests.references import progress_thresholds
from tests.streams import follow, loss_stream, norm_streams

STEPS = 5000
STREAMS = ["lognormal", "drift up", "drift down", "spikes"]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"percentile": 50, "rate": 0.05, "lift": 1.02},
        {"fast": 0.9, "slow": 0.99, "start": 1},
        {"margin": 0, "lift": 1.5},
    ],
)
@pytest.mark.parametrize("stream", STREAMS)
def test_thresholds_equal_the_oracle(stream, parameters):
    norms, losses = norm_streams(STEPS, seed=5)[stream], loss_stream(STEPS)
    thresholds = follow(ProgressQuantile(**parameters), norms, losses)
    assert thresholds == pytest.approx(progress_thresholds(norms, losses, **parameters), rel=1e-9, abs=0)


@pytest.mark.parametrize("missing", [None, nan])
def test_steps_without_a_loss_track_their_own_percentile_and_do_not_move_the_averages(missing):
    norms, losses = norm_streams(STEPS, seed=7)["lognormal"], loss_stream(STEPS)
    gaps = np.random.default_rng(8).random(STEPS) < 0.3
    gaps[:3] = True  # the averages begin at the first loss there is
    given = [missing if gap else loss for gap, loss in zip(gaps, losses, strict=True)]
    known = [None if gap else loss for gap, loss in zip(gaps, losses, strict=True)]
    assert follow(ProgressQuantile(), norms, given) == pytest.approx(progress_thresholds(norms, known), rel=1e-9, abs=0)


def test_without_any_loss_it_is_the_running_quantile_with_a_slow_start():
    norms = norm_streams(STEPS, seed=9)["lognormal"]
    thresholds = follow(ProgressQuantile(without_loss=40), norms)
    assert thresholds == pytest.approx(progress_thresholds(norms, [None] * STEPS, without_loss=40), rel=1e-9, abs=0)


def test_with_a_warmup_and_one_percentile_it_is_the_running_quantile():
    norms = norm_streams(STEPS, seed=9)["lognormal"]
    policy = ProgressQuantile(90, 0.2, without_loss=90, warmup_steps=50)
    assert follow(policy, norms) == follow(RunningQuantile(90, 0.2, warmup_steps=50), norms)


def test_a_lift_of_one_ignores_the_loss():
    norms = norm_streams(500)["lognormal"]
    policy, blind = ProgressQuantile(lift=1, without_loss=10), ProgressQuantile(without_loss=10)
    assert follow(policy, norms, loss_stream(500)) == follow(blind, norms)


def test_the_first_step_is_clipped_to_the_start_share_of_its_own_norm():
    policy = ProgressQuantile(without_loss=10)
    assert policy.inclusive
    assert follow(policy, [10.0, 10.0, 10.0]) == pytest.approx([3.0, 3.0, 3.0 * exp(0.02)], rel=1e-12, abs=0)
    assert not policy.inclusive


def test_a_falling_loss_lifts_every_clipped_step_and_a_rising_one_none():
    norms = [1.0] + [1e9] * 20
    falling = follow(ProgressQuantile(margin=0), norms, [10.0 - 0.1 * step for step in range(21)])
    rising = follow(ProgressQuantile(margin=0), norms, [10.0 + 0.1 * step for step in range(21)])
    assert falling == pytest.approx([0.3, *(0.3 * (1.1 * exp(0.02)) ** step for step in range(20))], rel=1e-9, abs=0)
    assert rising == pytest.approx([0.3, *(0.3 * exp(0.02 * step) for step in range(20))], rel=1e-9, abs=0)


def test_unclipped_steps_are_never_lifted():
    losses = [10.0 - 0.1 * step for step in range(20)]
    thresholds = follow(ProgressQuantile(), [1.0] + [0.01] * 19, losses)
    assert all(after < before for before, after in zip(thresholds[1:], thresholds[2:], strict=False))


@pytest.mark.parametrize(("losses", "clipped"), [("falling", 1 - 0.39), ("plateau", 0.9)])
def test_the_share_of_clipped_steps_is_what_the_docstring_says(losses, clipped):
    random = np.random.default_rng(3)
    norms = random.lognormal(0.0, 0.5, 20_000)
    noise = 0.1 * random.standard_normal(20_000)
    stream = {"falling": 1e3 * 0.9995 ** np.arange(20_000), "plateau": 2 + noise}[losses]
    thresholds = np.asarray(follow(ProgressQuantile(), norms.tolist(), stream.tolist()))
    share = float(np.mean(norms[2000:] > thresholds[2000:]))
    assert share == pytest.approx(clipped, abs=0.03)


def test_one_wild_loss_makes_it_wait_and_not_loosen():
    norms = [1.0] * 400
    losses = [2.0] * 200 + [200.0] + [2.0] * 199
    assert follow(ProgressQuantile(), norms, losses) == follow(ProgressQuantile(), norms, [2.0] * 400)


@pytest.mark.parametrize(("factor", "shift"), [(2.0**-40, 0.0), (2.0**40, 0.0), (1.0, 1024.0), (1.0, -4096.0)])
def test_neither_scale_nor_shift_of_the_loss_matters(factor, shift):
    norms, losses = norm_streams(500)["lognormal"], loss_stream(500)
    moved = [loss * factor + shift for loss in losses]
    assert follow(ProgressQuantile(), norms, moved) == pytest.approx(
        follow(ProgressQuantile(), norms, losses), rel=1e-12
    )


def test_the_threshold_rises_by_no_more_than_the_docstring_says():
    norms = norm_streams(STEPS, seed=2)["heavy tail"]
    thresholds = np.asarray(follow(ProgressQuantile(), norms, [5 - 1e-3 * step for step in range(STEPS)]))
    rises = np.diff(np.log(thresholds))
    assert rises.max() == pytest.approx(log(1.1) + 0.02, rel=1e-9)


def test_losses_at_the_end_of_the_floats_leave_a_finite_state():
    policy = ProgressQuantile()
    for step in range(50):
        policy.observe(1.0, 1.7e308 * (-1) ** step)
    assert all(np.isfinite(policy.losses))
    assert policy.threshold() > 0


def test_a_new_level_is_taken_without_the_slow_start():
    policy = ProgressQuantile()
    follow(policy, [1.0] * 10)
    policy.relearn([50.0] * 20)
    assert policy.threshold() == 50.0


def test_it_continues_from_a_state_taken_before_the_first_norm_and_in_the_middle():
    norms, losses = norm_streams(300)["lognormal"], loss_stream(300)
    whole = follow(ProgressQuantile(), norms, losses)
    for cut in (0, 150):
        policy = ProgressQuantile()
        begun = follow(policy, norms[:cut], losses[:cut])
        resumed = policy.clone()
        resumed.load_state_dict(policy.state_dict())
        assert begun + follow(resumed, norms[cut:], losses[cut:]) == whole
