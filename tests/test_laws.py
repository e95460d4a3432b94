"""The laws of the design as properties, for any norms: of every policy, of its controller, and of a clipper."""

import json
import warnings
from math import inf, isfinite, nan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import autoclip
from autoclip import (
    AdaGC,
    AutoClip,
    CenterMultiple,
    Clipper,
    Fixed,
    FixedPercentile,
    LossAwareQuantile,
    NoClip,
    ProbingQuantile,
    RunningQuantile,
    SkipStep,
    ZClip,
)
from autoclip.controller import Controller
from tests.properties import pinned
from tests.small_network import Records
from tests.streams import follow

PINNED = pinned(25)

percentiles = st.sampled_from([0, 10, 50, 90, 100]) | st.floats(1, 100)
windows = st.integers(1, 12)
warmups = {"warmup_steps": st.integers(0, 6), "warmup_threshold": st.sampled_from(["auto", inf])}
POLICIES = {
    "none": st.builds(NoClip, warmup_steps=st.integers(0, 6)),
    "fixed": st.builds(Fixed, st.floats(1e-3, 1e3), **warmups),
    "fixed_percentile": st.builds(FixedPercentile, percentiles, st.floats(0.1, 10), **warmups),
    "running_quantile": st.builds(RunningQuantile, percentiles, st.floats(0.01, 1), **warmups),
    "window": st.builds(RunningQuantile, percentiles, window=windows, **warmups),
    "loss_aware_quantile": st.builds(LossAwareQuantile, percentiles, st.floats(0.01, 1), **warmups),
    "probing_quantile": st.builds(ProbingQuantile, percentiles, st.just(0), windows, **warmups),
    "center_multiple": st.builds(
        CenterMultiple, st.sampled_from(["median", "mean"]), st.floats(0.1, 10), windows, **warmups
    ),
    "autoclip": st.builds(AutoClip, percentiles, st.booleans(), windows | st.none(), **warmups),
    "zclip": st.builds(
        ZClip,
        st.floats(0.1, 10),
        st.floats(0.5, 0.99),
        st.sampled_from(["reciprocal", "mean", "max"]),
        epsilon=st.just(0.0),  # the published one is in the units of the norms
        **warmups,
    ),
    "skip_step": st.builds(SkipStep, st.floats(0.1, 10), windows, **warmups),
    "adagc": st.builds(AdaGC, **warmups),
}
SCALE_FREE = [kind for kind in POLICIES if kind not in ("fixed", "adagc")]
every_kind = pytest.mark.parametrize("kind", POLICIES)

usual = st.floats(1e-3, 1e3)
norms = st.lists(usual, min_size=1, max_size=30)
any_norms = st.lists(st.floats(min_value=0) | st.sampled_from([nan, inf, 0.0, 5e-324, 1.7e308]), max_size=30)
losses = st.none() | st.floats()


def built(data, kind):
    return data.draw(POLICIES[kind], label="policy")


def through_json(thing, fresh):
    fresh.load_state_dict(json.loads(json.dumps(thing.state_dict(), allow_nan=False)))
    return fresh


@every_kind
@PINNED
@given(st.data(), any_norms, st.floats(1e-6, 1.0), st.floats(1.0, 1e6))
def test_a_threshold_is_a_float_above_zero_within_its_bounds(kind, data, stream, low, high):
    drawn = built(data, kind)
    policy = type(drawn)(**drawn.parameters() | {"min_threshold": low, "max_threshold": high})
    for norm in stream:
        assert type(policy.threshold()) is float
        assert low <= policy.threshold() <= high
        policy.observe(norm, data.draw(losses))
    free = follow(drawn, stream)
    assert all(threshold > 0 for threshold in free)


@every_kind
@PINNED
@given(st.data(), norms, st.lists(st.sampled_from([nan, inf, -inf, 0.0]), min_size=1, max_size=5))
def test_useless_norms_at_any_moment_change_nothing(kind, data, stream, useless):
    undisturbed = built(data, kind)
    policy = undisturbed.clone()
    at = data.draw(st.integers(0, len(stream)))
    before = follow(policy, stream[:at])
    state = (policy.threshold(), policy.phase)
    for norm in useless:
        policy.observe(norm, data.draw(losses))
    assert (policy.threshold(), policy.phase) == state
    assert before + follow(policy, stream[at:]) == follow(undisturbed, stream)
    assert policy.nonfinite_norms + policy.zero_norms == len(useless)


@pytest.mark.parametrize("kind", SCALE_FREE)
@PINNED
@given(st.data(), norms, st.integers(-60, 60))
def test_a_policy_is_equivariant_to_powers_of_two(kind, data, stream, exponent):
    policy = built(data, kind)
    scaled = policy.clone()
    told = data.draw(st.lists(losses, min_size=len(stream), max_size=len(stream)))
    expected = [threshold * 2.0**exponent for threshold in follow(policy, stream, told)]
    assert follow(scaled, [norm * 2.0**exponent for norm in stream], told) == expected


@every_kind
@PINNED
@given(st.data(), any_norms, any_norms)
def test_a_state_goes_through_json_at_any_moment(kind, data, first, second):
    policy = built(data, kind)
    follow(policy, first, data.draw(st.lists(losses, min_size=len(first), max_size=len(first))))
    resumed = through_json(policy, policy.clone())
    assert resumed.threshold() == policy.threshold()
    told = data.draw(st.lists(losses, min_size=len(second), max_size=len(second)))
    assert follow(resumed, second, told) == follow(policy, second, told)
    assert resumed.state_dict() == policy.state_dict()


@every_kind
@PINNED
@given(st.data(), any_norms, st.sampled_from(["scale", "reciprocal", "skip"]), st.none() | st.integers(1, 5))
def test_a_controller_only_shrinks_and_goes_through_json(kind, data, stream, response, relearn_after):
    controller = Controller(built(data, kind), response, relearn_after)
    stop = data.draw(st.integers(0, len(stream)))
    resumed = None
    for step, norm in enumerate(stream):
        if step == stop:
            resumed = through_json(controller, Controller(controller.policy.clone(), response, relearn_after))
        threshold, inclusive = controller.policy.threshold(), controller.policy.inclusive
        decision = controller.decide(norm, None)
        if resumed is not None:
            assert repr(resumed.decide(norm, None)) == repr(decision)
        assert decision.clipped == (isfinite(norm) and norm > decision.threshold)
        if decision.clipped:
            assert 0 <= decision.clipped_norm <= decision.threshold < norm
        elif isfinite(norm):
            assert decision.clipped_norm == norm
        if not inclusive and controller.policy.warmup_total is None:
            assert decision.threshold == threshold  # a step has no vote on its own threshold
    if resumed is not None:
        assert resumed.state_dict() == controller.state_dict()


def pairs_of(first, second):
    """Two streams of the same length, the second nowhere below the first."""
    return [*zip(*[(min(pair), max(pair)) for pair in zip(first, second, strict=False)], strict=True)]


@PINNED
@given(norms, percentiles, windows)
def test_quantiles_of_a_window_are_numpys_of_the_norms_before(stream, percentile, window):
    exact = {
        "window": (RunningQuantile(percentile, window=window, warmup_steps=1), window),
        "history": (AutoClip(percentile, inclusive=False, history=None), len(stream)),
        "median": (CenterMultiple("median", 1.0, window, warmup_steps=1), window),
    }
    for name, (policy, size) in exact.items():
        for step, threshold in enumerate(follow(policy, stream)):
            before = stream[max(step - size, 0) : step]
            share = 50 if name == "median" else percentile
            assert not before or threshold == float(np.percentile(before, share)), name


@PINNED
@given(norms, norms, percentiles, percentiles, windows)
def test_thresholds_are_monotone_in_norms_and_percentiles(first, second, one, other, window):
    lower, upper = pairs_of(first, second)
    low, high = sorted((one, other))
    for make in (
        lambda p: RunningQuantile(p, window=window, warmup_steps=1),
        lambda p: AutoClip(p, history=window),
        lambda p: FixedPercentile(p, warmup_steps=3, warmup_threshold=inf),
        lambda _: CenterMultiple("median", 2.0, window, warmup_steps=1),
        lambda _: CenterMultiple("mean", 2.0, window, warmup_steps=1),
    ):
        for smaller, larger in (((low, lower), (low, upper)), ((low, lower), (high, lower))):
            pair = zip(*[follow(make(percentile), stream) for percentile, stream in (smaller, larger)], strict=True)
            # Interpolated between two norms, or a mean: rounded.
            assert all(below <= above * (1 + 1e-15) for below, above in pair)


float32s = st.floats(2.0**-10, 2.0**10, width=32)
steps_of_two = st.lists(st.tuples(float32s, float32s), min_size=1, max_size=15)
CLIPPERS = {
    "running quantile": lambda: RunningQuantile(warmup_steps=3),
    "window": lambda: RunningQuantile(75, window=4, warmup_steps=1),
    "autoclip": lambda: AutoClip(50),
    "zclip": lambda: ZClip(warmup_steps=2, epsilon=0.0),
    "skip": lambda: SkipStep(warmup_steps=2),
}
every_clipper = pytest.mark.parametrize("name", CLIPPERS)
every_scope = pytest.mark.parametrize("scope", ["global", "parameter"])


class Loop:
    """Two weights under a clipper."""

    def __init__(self, name, scope, **options):
        self.weights, self.records = [nn.Parameter(torch.zeros(1)) for _ in range(2)], Records()
        self.clipper = Clipper(self.weights, CLIPPERS[name](), scope=scope, sinks=[self.records], **options)

    def step(self, gradients):
        for weight, value in zip(self.weights, gradients, strict=True):
            weight.grad = torch.tensor([value])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(starts again|non-finite)")
            self.clipper.step()
        return [None if weight.grad is None else weight.grad.item() for weight in self.weights]


@every_clipper
@every_scope
@PINNED
@given(steps_of_two)
def test_a_clipper_only_shrinks(name, scope, gradients):
    loop = Loop(name, scope)
    for values in gradients:
        left = loop.step(values)
        record = loop.records[-1]
        assert 0 <= record.coefficient <= 1
        kept = [(new, old) for new, old in zip(left, values, strict=True) if new is not None]
        assert all(0 <= new <= old for new, old in kept)
        assert torch.tensor([new for new, _ in kept]).norm() <= record.threshold * (1 + 1e-6)
        if scope == "global" and kept:
            ratios = [new / old for new, old in kept]
            assert max(ratios) == pytest.approx(min(ratios), rel=1e-6)
        if not record.clipped:
            assert left == list(values)


@every_clipper
@every_scope
@PINNED
@given(steps_of_two, st.integers(-20, 20))
def test_a_clipper_is_equivariant_to_powers_of_two(name, scope, gradients, exponent):
    loop, scaled = Loop(name, scope), Loop(name, scope)
    for values in gradients:
        loop.step(values)
        scaled.step([value * 2.0**exponent for value in values])
        assert scaled.records[-1].total_norm == loop.records[-1].total_norm * 2.0**exponent
        assert scaled.records[-1].clipped == loop.records[-1].clipped
        ours, theirs = scaled.clipper.threshold, loop.clipper.threshold
        if scope == "global":
            assert ours == theirs * 2.0**exponent
        else:
            assert ours == {group: threshold * 2.0**exponent for group, threshold in theirs.items()}


@every_clipper
@every_scope
@PINNED
@given(st.data(), st.lists(st.tuples(float32s | st.sampled_from([nan, inf, 0.0]), float32s), min_size=1, max_size=15))
def test_a_clipper_goes_through_json_at_any_moment(name, scope, data, gradients):
    stop = data.draw(st.integers(0, len(gradients)))
    first, second = Loop(name, scope), Loop(name, scope)
    for values in gradients[:stop]:
        first.step(values)
    through_json(first.clipper, second.clipper)
    ends = [first.step(values) for values in gradients[stop:]], [second.step(values) for values in gradients[stop:]]
    assert repr(ends[0]) == repr(ends[1])
    assert second.clipper.state_dict() == first.clipper.state_dict()


def test_every_policy_is_under_these_laws():
    assert POLICIES.keys() >= autoclip.POLICIES.keys()
