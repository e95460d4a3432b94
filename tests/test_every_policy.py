"""The laws that every policy keeps, whatever it computes: each entry of `POLICIES` runs through all of them."""

import json
from math import inf, isnan, nan

import numpy as np
import pytest

import autoclip
from autoclip import POLICIES, RunningQuantile
from tests.streams import follow, loss_stream, norm_streams, with_useless_norms

STEPS = 600
STREAMS = norm_streams(STEPS)
LOSSES = loss_stream(STEPS)
EXTREMES = np.random.default_rng(11).choice([5e-324, 1e-310, 1e-30, 1.0, 1e30, 1e300, 1.7e308], STEPS).tolist()

# What the constructor of each kind needs for these tests; every kind has its place here.
ARGUMENTS = {
    "none": {},
    "fixed": {"threshold": 1.5},
    "fixed_percentile": {},
    "running_quantile": {},
    "probing_quantile": {},
    "loss_aware_quantile": {},
    "center_multiple": {},
    "autoclip": {"history": 200},
    "zclip": {"epsilon": 0.0},  # the published 1e-6 is in the units of the norms
    "skip_step": {},
    "adagc": {},
}
VARIANTS = {
    "own warm-up": {},
    "no warm-up": {"warmup_steps": 0},
    "warm-up 20": {"warmup_steps": 20},
    "warm-up 20 unclipped": {"warmup_steps": 20, "warmup_threshold": inf},
}

every_kind = pytest.mark.parametrize("kind", POLICIES)
every_kind_that_collects = pytest.mark.parametrize(
    "kind", [kind for kind, cls in POLICIES.items() if cls(**ARGUMENTS.get(kind, {})).warmup_steps >= 20]
)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(kind, variant="own warm-up"):
    return POLICIES[kind](**{**ARGUMENTS[kind], **VARIANTS[variant]})


def through_json(policy):
    resumed = policy.clone()
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
    return resumed


def leaves(state):
    """Number of plain values in a state."""
    if isinstance(state, dict):
        return sum(map(leaves, state.values()))
    return sum(map(leaves, state)) if isinstance(state, list) else 1


def test_every_kind_has_its_arguments_here_and_its_name_in_the_package():
    assert ARGUMENTS.keys() == POLICIES.keys()
    for cls in POLICIES.values():
        assert getattr(autoclip, cls.__name__) is cls


@every_kind
@pytest.mark.parametrize(("number", "stream"), [*enumerate([*STREAMS, "extremes"])])
def test_the_laws_hold_on_a_long_stream(kind, number, stream):
    """A threshold is a float above zero, useless norms change nothing, and a resumed run is the uninterrupted one."""
    variant = [*VARIANTS][(number + [*POLICIES].index(kind)) % len(VARIANTS)]
    norms = with_useless_norms(EXTREMES if stream == "extremes" else STREAMS[stream])[:STEPS]
    uninterrupted, undisturbed, policy = (build(kind, variant) for _ in range(3))
    expected = follow(uninterrupted, norms, LOSSES)
    assert all(type(threshold) is float and threshold > 0 for threshold in expected)
    useful = [step for step, norm in enumerate(norms) if 0 < norm < inf]
    alone = follow(undisturbed, [norms[step] for step in useful], [LOSSES[step] for step in useful])
    assert alone == [expected[step] for step in useful]
    interruptions = {0, 1, 2, 19, 20, 21, *np.random.default_rng(12).integers(0, STEPS, 5).tolist()}
    actual = []
    for step in range(STEPS):
        if step in interruptions:
            policy = through_json(policy)
        actual += follow(policy, norms[step : step + 1], LOSSES[step : step + 1])
    assert actual == expected
    assert policy.state_dict() == uninterrupted.state_dict()
    assert policy.nonfinite_norms + policy.zero_norms == STEPS - len(useful)


@every_kind
@every_variant
def test_a_loss_of_nan_or_inf_is_no_loss(kind, variant):
    none = [None if step % 3 else loss for step, loss in enumerate(LOSSES)]
    useless = [(nan, inf, -inf)[step % 9 // 3] if step % 3 else loss for step, loss in enumerate(LOSSES)]
    without, given = build(kind, variant), build(kind, variant)
    assert follow(given, STREAMS["spikes"], useless) == follow(without, STREAMS["spikes"], none)
    assert json.dumps(given.state_dict(), allow_nan=False) == json.dumps(without.state_dict())


@every_kind
@every_variant
def test_a_huge_or_negative_loss_breaks_nothing(kind, variant):
    losses = np.random.default_rng(13).choice([-1.7e308, -1.0, 0.0, 1.0, 1e160, 1.7e308], STEPS).tolist()
    policy = build(kind, variant)
    thresholds = follow(policy, STREAMS["lognormal"], losses)
    assert all(threshold > 0 for threshold in thresholds)
    assert follow(through_json(policy), [1.0]) == follow(policy, [1.0])


@every_kind
@every_variant
def test_the_state_stops_growing(kind, variant):
    policy = build(kind, variant)
    follow(policy, STREAMS["lognormal"])
    size = leaves(policy.state_dict())
    follow(policy, STREAMS["drift up"] + STREAMS["drift down"])
    assert leaves(policy.state_dict()) == size <= 300


@every_kind
@pytest.mark.parametrize("explosion", [1, 2, 3, 10])
def test_an_explosion_in_the_warmup_is_contained(kind, explosion):
    policy = build(kind, "warm-up 20")
    norms = STREAMS["lognormal"][:20]
    thresholds = follow(policy, [norm * (1e4 if step >= explosion else 1.0) for step, norm in enumerate(norms)])
    warmup = thresholds[:19] if policy.inclusive else thresholds
    assert max(warmup[1:]) <= 3 * max(norms[:explosion])


@every_kind_that_collects
def test_three_exploded_steps_in_the_warmup_leave_no_trace_after_it(kind):
    norms = STREAMS["lognormal"][:200]
    thresholds = follow(build(kind), [norm * (1e4 if 5 <= step < 8 else 1.0) for step, norm in enumerate(norms)])
    assert max(thresholds[1:]) <= 3 * max(norms)


@pytest.mark.parametrize("percentile", [10, 50, 90, 99])
def test_the_tracker_of_rate_a_fifth_clips_what_the_percentile_promised_through_every_drift(percentile):
    warmup, deviations = 100, {}
    for stream, norms in norm_streams(warmup + 6000, seed=2).items():
        policy = RunningQuantile(percentile, rate=0.2, warmup_steps=warmup)
        clipped = []
        for norm, threshold in zip(norms, follow(policy, norms), strict=True):
            if norm > 0:
                clipped.append(norm > threshold)
        deviations[stream] = 100 * abs(np.mean(clipped[warmup:]) - (1 - percentile / 100))
    worst = max(deviations, key=deviations.get)
    message = f"{worst}: realised differs from nominal by {deviations[worst]:.3f} percentage points"
    assert not any(map(isnan, deviations.values()))
    assert deviations[worst] <= 1.0, message
