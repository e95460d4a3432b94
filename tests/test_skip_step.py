import json
from math import inf, nextafter

import pytest

from autoclip.controller import Controller
from autoclip.policies import SkipStep
from tests.references import skip_step_thresholds
from tests.streams import follow, norm_streams

STEPS = 2000

# What the published rule has and ours has not by default: an unclipped warm-up (ours bounds it, so that exploded norms
# do not enter the window), and no least spread (ours keeps std at 1 % of the mean, so that constant norms are no trap).
PUBLISHED = {"warmup_threshold": inf, "least_spread": 0.0}


@pytest.mark.parametrize(("sigmas", "window", "warmup_steps"), [(6.0, 128, 64), (6.0, 128, 63), (2.0, 10, 5)])
@pytest.mark.parametrize("stream", ["lognormal", "drift up", "spikes"])
def test_thresholds_equal_the_oracle(stream, sigmas, window, warmup_steps):
    norms = norm_streams(STEPS, seed=5)[stream]
    policy = SkipStep(sigmas, window, warmup_steps=warmup_steps, **PUBLISHED)
    expected = skip_step_thresholds(norms, sigmas, window, warmup_steps)
    assert follow(policy, norms)[warmup_steps:] == pytest.approx(expected, rel=1e-9, abs=0)


def test_skipped_norms_enter_the_window():
    controller = Controller(SkipStep(), "skip")
    decisions = [controller.decide(norm, None) for norm in norm_streams(128)["lognormal"] + [100.0] * 20]
    assert [one.clipped_norm for one in decisions[128:]] == [0.0] * 4 + [100.0] * 16


def test_the_least_spread_lets_constant_norms_rise():
    policy, published = SkipStep(), SkipStep(**PUBLISHED)
    for one in (policy, published):
        follow(one, [2.0] * 200)
    assert policy.threshold() == pytest.approx(2.0 * 1.06, rel=1e-12, abs=0)
    assert published.threshold() == 2.0 < nextafter(2.0, inf)


def test_norms_that_explode_within_the_warmup_count_as_the_largest_of_the_others():
    norms = norm_streams(64)["lognormal"]
    policy = SkipStep()
    follow(policy, [norm * (1e4 if 5 <= step < 8 else 1.0) for step, norm in enumerate(norms)])
    largest = max(norm for step, norm in enumerate(norms) if not 5 <= step < 8)
    contained = [largest if 5 <= step < 8 else norm for step, norm in enumerate(norms)]
    assert policy.threshold() == pytest.approx(skip_step_thresholds([*contained, 1.0])[0], rel=1e-12, abs=0)


def test_one_norm_is_enough_to_go_on():
    policy = SkipStep(window=1, warmup_steps=0)
    assert follow(policy, [3.0, 3.0, 5.0, 5.0]) == pytest.approx([inf, 3.18, 3.18, 5.3], rel=1e-12)


@pytest.mark.parametrize("on", ["loss", "loss or norm"])
def test_the_loss_has_a_threshold_of_the_same_formula_from_earlier_losses(on):
    norms = norm_streams(300)["lognormal"]
    policy = SkipStep(2.0, 10, on=on, warmup_steps=5, **PUBLISHED)
    found = []
    for norm, loss in zip(norms, norms[::-1], strict=True):
        found.append(policy.loss_threshold())
        policy.observe(norm, loss)
    assert found[:5] == [inf] * 5
    assert found[5:] == pytest.approx(skip_step_thresholds(norms[::-1], 2.0, 10, 5), rel=1e-9, abs=0)
    assert (policy.threshold() == inf) == (on == "loss")
    assert SkipStep().loss_threshold() is None


def test_losses_of_any_sign_and_size_give_a_threshold():
    policy = SkipStep(on="loss or norm", warmup_steps=3)
    for step in range(200):
        policy.observe(1.0, (-1.7e308, 1.7e308, 0.0, -1.0)[step % 4])
        assert policy.loss_threshold() == policy.loss_threshold()  # no NaN
    resumed = policy.clone()
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
    assert resumed.loss_threshold() == policy.loss_threshold()
    negative = SkipStep(2, 10, on="loss", warmup_steps=3)
    for _ in range(5):
        negative.observe(1.0, -2.0)
    assert negative.loss_threshold() == pytest.approx(-2.0 + 2 * 0.01 * 2.0)
