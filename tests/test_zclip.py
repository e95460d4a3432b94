from math import inf

import numpy as np
import pytest

from autoclip.controller import Controller
from autoclip.policies import ZClip
from autoclip.policies.zclip import Form
from tests.references import open_sora_thresholds, zclip
from tests.streams import follow, norm_streams

STEPS = 2000
FORMS = list(Form.__args__)

# What the published rule has and ours has not by default: an unclipped warm-up (ours bounds it: exploded norms do not
# enter the moments), and no least spread (ours keeps std at 1 % of the mean at least: constant norms do no harm).
PUBLISHED = {"warmup_threshold": inf, "least_spread": 0.0}


def decisions(policy, norms):
    controller = Controller(policy, policy.response, relearn_after=None)
    return [controller.decide(norm, None) for norm in norms]


def started(mean, std, **settings):
    policy = ZClip(warmup_steps=2, **{**PUBLISHED, **settings})
    follow(policy, [mean - std, mean + std])
    return policy


@pytest.mark.parametrize(("form", "expected"), [("reciprocal", 1.500001), ("max", 2.0), ("mean", 1.0)])
def test_published_vectors_from_mean_1_and_variance_a_quarter(form, expected):
    policy = started(1.0, 0.5, z_threshold=2, form=form)
    assert policy.reciprocal(3.0) == pytest.approx(expected, rel=0, abs=1e-12)


def test_the_oracle_reproduces_the_published_vectors():
    left = {form: zclip([0.5, 1.5, 3.0], z_threshold=2, form=form, warmup_steps=2)[1] for form in FORMS}
    assert left["reciprocal"] == pytest.approx([1.500001], rel=0, abs=1e-12)
    assert left["max"] == pytest.approx([2.0], rel=1e-15, abs=0)
    moments = zclip([0.5, 1.5, 3.0, 1.0], z_threshold=9, decay=0.9, warmup_steps=2)[2]
    assert moments[1] == pytest.approx((1.2, 0.549), rel=1e-12, abs=0)


@pytest.mark.parametrize("max_norm", [inf, 1.0], ids=["no max_norm", "max_norm 1"])
@pytest.mark.parametrize(("z_threshold", "decay", "warmup_steps"), [(2.5, 0.97, 25), (1.0, 0.9, 7)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stream", ["lognormal", "drift up", "spikes"])
def test_thresholds_and_the_norms_left_equal_the_oracle(stream, form, z_threshold, decay, warmup_steps, max_norm):
    norms = norm_streams(STEPS, seed=5)[stream]
    settings = {"z_threshold": z_threshold, "decay": decay, "form": form, "warmup_steps": warmup_steps}
    thresholds, left, moments = zclip(norms, max_norm=max_norm, **settings)
    policy = ZClip(**settings, **PUBLISHED, max_threshold=max_norm)
    actual = decisions(policy, norms)[warmup_steps:]
    expected = [min(threshold, max_norm) for threshold in thresholds]
    assert [one.threshold for one in actual] == pytest.approx(expected, rel=1e-9, abs=0)
    assert [one.clipped_norm for one in actual] == pytest.approx(left, rel=1e-9, abs=0)
    last = ZClip(**settings, **PUBLISHED)
    follow(last, norms[:-1])
    assert (last.moments.mean, last.moments.variance) == pytest.approx(moments[-1], rel=1e-9, abs=0)
    assert 10 < sum(one.clipped for one in actual) < len(actual)


@pytest.mark.parametrize("stream", ["lognormal", "drift up", "spikes"])
def test_without_learning_spikes_it_is_open_soras(stream):
    norms = norm_streams(STEPS, seed=5)[stream]
    policy = ZClip(3, decay=0.99, form="max", learn_spikes=False, **PUBLISHED)
    expected = open_sora_thresholds(norms[25:], float(np.mean(norms[:25])), float(np.var(norms[:25])))
    assert follow(policy, norms)[25:] == pytest.approx(expected, rel=1e-9, abs=0)
    assert sum(np.array(norms[25:]) > expected) > 10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", [1e-300, 1.0, 1e300])
def test_a_rise_after_constant_norms_is_a_spike(norm, form):
    policy = ZClip(form=form, epsilon=0.0, **PUBLISHED)
    follow(policy, [norm] * 40)
    assert policy.threshold() == norm
    assert policy.reciprocal(2 * norm) == norm
    policy.observe(2 * norm)
    assert policy.threshold() == norm


@pytest.mark.parametrize("form", FORMS)
def test_the_least_spread_lets_constant_norms_rise(form):
    policy = ZClip(form=form, epsilon=0.0)
    follow(policy, [3.0] * 40)
    assert policy.threshold() == pytest.approx(3.0 * 1.025, rel=1e-12, abs=0)


def test_norms_that_explode_within_the_warmup_count_as_the_largest_of_the_others():
    norms = norm_streams(25)["lognormal"]
    exploded = [norm * (1e4 if 5 <= step < 8 else 1.0) for step, norm in enumerate(norms)]
    kept = [norm for step, norm in enumerate(norms) if not 5 <= step < 8]
    contained = [max(kept) if 5 <= step < 8 else norm for step, norm in enumerate(norms)]
    policy, unbounded = ZClip(), ZClip(warmup_threshold=inf)
    follow(policy, exploded)
    follow(unbounded, exploded)
    assert policy.moments.mean == pytest.approx(np.mean(contained), rel=1e-12)
    assert policy.moments.variance == pytest.approx(np.var(contained), rel=1e-12)
    assert unbounded.moments.mean == pytest.approx(np.mean(exploded), rel=1e-12)
