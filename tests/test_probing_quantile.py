from itertools import pairwise
from math import nan

import numpy as np
import pytest

from autoclip.policies import ProbingQuantile
from tests.references import probing_thresholds
from tests.streams import follow, loss_stream, norm_streams

STEPS = 1200
STREAMS = ["lognormal", "drift up", "drift down", "shift down", "spikes", "small at first"]


def lognormal(steps, seed=0):
    return np.random.default_rng(seed).lognormal(0, 0.5, steps).tolist()


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"percentile": 95, "lowest": 95},
        {"window": 7, "start": 1.0, "growth": 0.5},
        {"margin": 0, "cut": 0.99, "floor": 1e-6},
        {"margin": 0.25, "setback": 0, "step_back": 5, "pace": 2, "memory": 1, "pause": 0},
        {"pace": 0, "pause": 50, "margin": 0.25},
        {"patience": 1, "margin": 0.25, "setback": 0.01},
        {"patience": 1, "margin": 0, "setback": 0, "pace": 4, "window": 20},
        {"setback": 0.5},
        {"patience": 0},
    ],
)
@pytest.mark.parametrize("stream", STREAMS)
def test_thresholds_equal_the_oracle(stream, parameters):
    streams = norm_streams(STEPS, seed=5)
    streams["small at first"] = [1e-3, *streams["lognormal"][1:]]
    norms, losses = streams[stream], loss_stream(STEPS)
    thresholds = follow(ProbingQuantile(**parameters), norms, losses)
    assert thresholds == pytest.approx(probing_thresholds(norms, losses, **parameters), rel=1e-9, abs=0)


@pytest.mark.parametrize("missing", [None, nan])
def test_steps_without_a_loss_open_and_do_not_move_the_averages(missing):
    norms, losses = norm_streams(STEPS, seed=7)["lognormal"], loss_stream(STEPS)
    gaps = np.random.default_rng(8).random(STEPS) < 0.3
    gaps[:3] = True  # the averages begin at the first loss there is
    given = [missing if gap else loss for gap, loss in zip(gaps, losses, strict=True)]
    known = [None if gap else loss for gap, loss in zip(gaps, losses, strict=True)]
    assert follow(ProbingQuantile(), norms, given) == pytest.approx(probing_thresholds(norms, known), rel=1e-9, abs=0)


@pytest.mark.parametrize("losses", [None, [2.0] * STEPS, [5 - 1e-3 * step for step in range(STEPS)]])
def test_a_tame_training_is_clipped_in_one_step_of_ten(losses):
    norms = lognormal(STEPS, seed=9)
    clipped = np.asarray(norms) > follow(ProbingQuantile(), norms, losses)
    assert clipped[300:].mean() == pytest.approx(0.1, abs=0.02)
    assert clipped.mean() < 0.2


def test_an_explosion_cannot_be_followed_whatever_the_loss():
    norms = [1.0] * 300 + [1.5**step for step in range(100)]
    for losses in (None, [3 - 1e-3 * step for step in range(400)]):
        thresholds = follow(ProbingQuantile(), norms, losses)
        assert thresholds[299] == 1.0
        assert max(after / before for before, after in pairwise(thresholds)) == pytest.approx(1.03)
        assert 10 < thresholds[-1] < 1.03**100 < norms[-1]


def test_a_rising_loss_cuts_to_the_floor_and_steps_back():
    norms, policy = [1.0] * 300, ProbingQuantile()
    follow(policy, norms[:200], [5 - 0.01 * step for step in range(200)])
    assert (policy.q, policy.current) == (90, 1.0)
    thresholds, opened = [], []
    for step in range(100):
        policy.observe(1.0, 3 + 0.05 * step)
        thresholds.append(policy.threshold())
        opened.append(policy.q)
    backs = [step for step, (before, after) in enumerate(pairwise([90.0, *opened])) if after < before]
    assert opened[backs[0]] == 50
    assert min(after - before for before, after in pairwise(backs)) == 11
    assert min(thresholds) == pytest.approx(0.1)
    assert min(opened) == 10


def test_each_step_back_opens_more_slowly():
    policy = ProbingQuantile()
    follow(policy, [1.0] * 200, [2.0] * 200)
    paces = [policy.opening]
    for step in range(100):
        policy.observe(1.0, 2 + 0.05 * step)
        if policy.opening != paces[-1]:
            paces.append(policy.opening)
    assert paces[:4] == pytest.approx([0.5, 0.35, 0.245, 0.1715])


def test_a_loss_that_rises_in_vain_is_not_listened_to():
    policy, opened = ProbingQuantile(), []
    follow(policy, [1.0] * 200, [2.0] * 200)
    losses = [2 + 0.05 * step for step in range(400)]  # steadily, whatever the threshold
    for loss in losses + [losses[-1]] * 300:
        policy.observe(1.0, loss)
        opened.append(policy.q)
    let_go = opened.index(10) + 60
    is_open = opened.index(90, let_go)
    assert np.diff(opened[let_go : is_open + 1]) == pytest.approx(0.5)
    assert set(opened[is_open:]) == {90}
    follow(policy, [1.0] * 60, [losses[-1] + 20] * 60)
    assert policy.q < 90  # listened to again


def test_steps_back_that_are_far_apart_are_not_in_vain():
    policy, noise = ProbingQuantile(), np.random.default_rng(2)
    follow(policy, [1.0] * 300, np.linspace(10, 0, 300))
    for level in range(4):
        follow(policy, [1.0] * 150, noise.normal(2 * level, 0.3, 150))
        assert policy.in_vain < 4
    assert policy.q < 90


def test_the_noise_of_a_loss_that_has_come_down_closes_nothing():
    steps = 10_000
    losses = 10 * np.exp(-np.arange(steps) / 200) + np.random.default_rng(3).exponential(0.3, steps)
    policy, touchy = ProbingQuantile(), ProbingQuantile(setback=0)
    norms = lognormal(steps)
    clipped, too_many = (np.mean(np.asarray(norms) > follow(one, norms, losses)) for one in (policy, touchy))
    assert policy.q == 90
    assert clipped < 0.15 < 0.5 < too_many


def test_one_wild_batch_is_no_rise():
    norms, quiet = lognormal(400), [3 - 1e-3 * step for step in range(400)]
    noisy = (np.asarray(quiet) + np.random.default_rng(1).normal(0, 0.1, 400)).tolist()
    wild = [*noisy[:200], 1e4, *noisy[201:]]
    policy, undisturbed = ProbingQuantile(), ProbingQuantile()
    assert follow(policy, norms, wild)[:202] == follow(undisturbed, norms, noisy)[:202]
    assert policy.q == undisturbed.q == 90


@pytest.mark.parametrize("count", [1, 10, 200])
def test_a_threshold_below_the_floor_is_not_raised_by_a_cut(count):
    norms = [1e-6, *[1.0] * 3] + [1.0] * count
    thresholds = follow(ProbingQuantile(), norms, [1.0 + step for step in range(4 + count)])
    assert all(after <= before for before, after in pairwise(thresholds[: min(10, len(norms))]))


@pytest.mark.parametrize(("factor", "shift"), [(2.0**-40, 0.0), (2.0**40, 0.0), (1.0, 1024.0), (1.0, -4096.0)])
def test_neither_the_scale_of_the_loss_nor_a_constant_matters(factor, shift):
    norms, losses = norm_streams(500)["lognormal"], loss_stream(500)
    moved = follow(ProbingQuantile(), norms, [loss * factor + shift for loss in losses])
    assert moved == pytest.approx(follow(ProbingQuantile(), norms, losses), rel=1e-9, abs=0)


def test_the_first_step_is_clipped_to_the_start_share_of_its_own_norm():
    policy = ProbingQuantile()
    assert policy.inclusive
    assert follow(policy, [10.0, 10.0, 10.0]) == pytest.approx([3.0, 3.0, 3.09], rel=1e-12, abs=0)
    assert not policy.inclusive


@pytest.mark.parametrize("first", [1e-300, 1e-6, 1e-2, 0.09])
def test_a_first_norm_that_is_far_too_small_costs_ten_steps(first):
    thresholds = follow(ProbingQuantile(), [first, *[1.0] * 40], [1.0] * 41)
    assert max(thresholds[:10]) < 0.4 * first
    assert thresholds[10] == pytest.approx(0.3)


def test_a_first_norm_that_has_exploded_is_forgotten_at_once():
    thresholds = follow(ProbingQuantile(), [1e9, *lognormal(50)])
    assert max(thresholds[12:]) < 1.0


def test_with_a_warmup_it_starts_at_the_lowest_percentile_of_its_norms():
    norms = lognormal(80)
    policy = ProbingQuantile(warmup_steps=50)
    assert not policy.inclusive
    thresholds = follow(policy, norms)
    assert thresholds[50] == pytest.approx(float(np.percentile(norms[:50], 10)))


def test_a_new_level_is_taken_without_the_slow_start():
    policy = ProbingQuantile()
    follow(policy, [1.0] * 3)
    policy.relearn([50.0] * 20)
    assert policy.threshold() == 50.0
    assert max(follow(policy, [1e9] * 20)) < 100


def test_a_lowest_percentile_above_the_highest_is_refused():
    with pytest.raises(ValueError, match="lowest must be at most percentile, got 60 > 50"):
        ProbingQuantile(50, 60)
