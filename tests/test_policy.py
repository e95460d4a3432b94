"""The contract of `Policy`, shown on real policies and on two written by hand."""

import io
import json
from dataclasses import KW_ONLY, dataclass, field
from math import inf, nan

import numpy as np
import pytest
import torch

from autoclip import Clipper
from autoclip.policies import (
    AdaGC,
    AutoClip,
    CenterMultiple,
    Fixed,
    FixedPercentile,
    LossAwareQuantile,
    NoClip,
    Policy,
    ProbingQuantile,
    SkipStep,
    ZClip,
)
from autoclip.policies import RunningQuantile as Running
from autoclip.policies.parameters import Positive, Steps
from tests.references import automatic_warmup_thresholds
from tests.streams import norm_streams


@dataclass
class LatestNorm(Policy):
    """A user's policy: a multiple of the latest norm."""

    factor: Positive = 2.0
    _: KW_ONLY
    warmup_steps: Steps = 2

    def __post_init__(self):
        super().__post_init__()
        self.latest = 0.0

    def _start(self, warmup_norms):
        self.latest = warmup_norms[-1]

    def _threshold(self):
        return self.factor * self.latest

    def _observe(self, norm, loss):
        self.latest = norm


def follow(policy, norms, losses=None):
    """Threshold of each step: read before the step's norm is known."""
    thresholds = []
    for step, norm in enumerate(norms):
        thresholds.append(policy.threshold())
        policy.observe(norm, None if losses is None else losses[step])
    return thresholds


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("warmup_steps", [1, 2, 3, 10])
def test_the_first_step_under_the_policys_own_threshold_is_number_warmup_steps(warmup_steps):
    policy = FixedPercentile(percentile=100, warmup_steps=warmup_steps, warmup_threshold=77.0)
    phases = []
    for step in range(warmup_steps + 2):
        phases.append((policy.phase, policy.threshold()))
        policy.observe(1.0 + step)
    assert phases[:warmup_steps] == [("warmup", 77.0)] * warmup_steps
    assert phases[warmup_steps:] == [("active", float(warmup_steps))] * 2


def test_without_warmup_the_first_step_still_runs_under_the_warmup_threshold():
    policy = Running(warmup_steps=0, warmup_threshold=77.0)
    assert (policy.phase, policy.threshold()) == ("warmup", 77.0)
    policy.observe(3.0)
    assert (policy.phase, policy.threshold()) == ("active", 3.0)


@pytest.mark.parametrize(("policy", "expected"), [(Fixed(2.0), 2.0), (NoClip(), inf)])
def test_a_policy_that_needs_no_norms_is_active_from_the_first_step(policy, expected):
    assert (policy.phase, policy.threshold()) == ("active", expected)


def test_a_constant_with_a_warmup_holds_from_the_end_of_the_warmup():
    policy = Fixed(2.0, warmup_steps=3, warmup_threshold=9.0)
    assert follow(policy, [5.0] * 5) == [9.0, 9.0, 9.0, 2.0, 2.0]


def test_the_norms_of_the_warmup_are_kept_until_it_ends_and_no_longer():
    policy = Running(warmup_steps=3)
    kept = []
    for norm in (1.0, 2.0, 3.0, 4.0):
        kept.append(policy.state_dict()["warmup_norms"])
        policy.observe(norm)
    assert kept == [[], [1.0], [1.0, 2.0], []]


def test_an_infinite_warmup_threshold_collects_unclipped():
    assert follow(Running(warmup_steps=4, warmup_threshold=inf), [1.0, 9.0, 1.0, 9.0]) == [inf] * 4


def test_the_automatic_warmup_is_unbounded_at_first_then_a_running_median_from_the_first_norm():
    for name, norms in norm_streams(60).items():
        if name not in ("constant", "zeros"):
            thresholds = follow(Running(warmup_steps=100), norms)
            assert thresholds == pytest.approx(automatic_warmup_thresholds(norms), rel=1e-12, abs=0), name


def test_the_least_and_the_largest_threshold_hold_in_warmup_and_later():
    policy = Running(warmup_steps=3, min_threshold=2.0, max_threshold=5.0)
    thresholds = follow(policy, [1e-3, 1e-3, 1e-3, 1e3, 1e3] + [1e3] * 300)
    assert thresholds[:5] == [5.0, 2.0, 2.0, 2.0, 2.0]
    assert thresholds[-1] == 5.0
    assert policy.quantile.get() > 5.0  # the tracked value itself is not bounded


def test_a_negative_norm_is_an_error_and_changes_nothing():
    policy = Running()
    before = policy.state_dict()
    with pytest.raises(ValueError, match=r"a norm cannot be negative, got -1\.0"):
        policy.observe(-1.0)
    assert policy.state_dict() == before


def test_parameters_build_the_same_policy_and_clone_forgets_what_was_learned():
    policy = Running(percentile=90, rate=0.3, warmup_steps=2, max_threshold=50.0)
    follow(policy, [1.0, 2.0, 3.0])
    clone = policy.clone()
    assert type(clone) is Running
    assert clone.parameters() == policy.parameters() == type(policy)(**policy.parameters()).parameters()
    assert clone.state_dict() == Running().state_dict() != policy.state_dict()
    assert Fixed(3.0).parameters()["threshold"] == 3.0


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (Running(), "RunningQuantile(percentile=50)"),
        (Running(90, rate=0.2), "RunningQuantile(percentile=90, rate=0.2)"),
        (Running(99.9, min_threshold=2), "RunningQuantile(percentile=99.9, min_threshold=2.0)"),
        (AutoClip(), "AutoClip(percentile=10)"),
        (ProbingQuantile(), "ProbingQuantile()"),  # how far it opens is no clip rate
        (ProbingQuantile(75), "ProbingQuantile(percentile=75)"),
        (Fixed(1), "Fixed(threshold=1.0)"),
        (NoClip(warmup_threshold=inf), "NoClip(warmup_threshold=float('inf'))"),
        (CenterMultiple("mean", window=7), "CenterMultiple(center='mean', window=7)"),
        (LatestNorm(factor=3), "LatestNorm(factor=3.0)"),
    ],
)
def test_repr_is_what_constructs_it_with_every_clip_rate_named(policy, text):
    assert repr(policy) == text
    assert eval(text, {type(policy).__name__: type(policy)}).parameters() == policy.parameters()  # noqa: S307


@pytest.mark.parametrize("policy", [Running(warmup_steps=3), Running(window=4), LossAwareQuantile(), CenterMultiple()])
def test_state_is_json_and_loads_with_weights_only(policy):
    follow(policy, [1.0, 2.0, nan, 0.0, 5.0], losses=[1.0, 1.5, 2.0, nan, 3.0])
    state = policy.state_dict()
    assert saved_and_loaded(state) == json.loads(json.dumps(state, allow_nan=False)) == state


@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_norms_and_losses_from_numpy_leave_a_plain_state(number):
    policy = LossAwareQuantile(warmup_steps=2)
    for step in range(4):
        policy.observe(number(1.5 + step), number(2.0))
        state = policy.state_dict()
        assert saved_and_loaded(state) == json.loads(json.dumps(state, allow_nan=False))


def test_state_and_policy_share_nothing():
    policy = Running(warmup_steps=5)
    follow(policy, [1.0, 2.0])
    state = policy.state_dict()
    frozen = json.dumps(state)
    policy.observe(3.0)
    assert json.dumps(state) == frozen
    resumed = policy.clone()
    resumed.load_state_dict(state)
    resumed.observe(4.0)
    assert json.dumps(state) == frozen


def broken(state, **changes):
    return {key: value for key, value in {**state, **changes}.items() if value is not Ellipsis}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "AutoClip"}, "state of a AutoClip .*cannot be loaded into a RunningQuantile"),
        ({"policy": ...}, "state of a None .*cannot be loaded into a RunningQuantile"),
        ({"quantile": ...}, "does not fit RunningQuantile: .*quantile"),
        ({"zero_norms": ..., "learned_norms": ...}, "does not fit RunningQuantile: .*learned_norms.*zero_norms"),
        ({"surprise": {"value": 1.0}}, "does not fit RunningQuantile: .*surprise"),
        ({"percentile": 10.0}, "does not fit RunningQuantile: .*percentile"),
        ({"learned_norms": "x"}, "does not fit RunningQuantile: learned_norms cannot be 'x'"),
        ({"warmup_norms": "abc"}, "does not fit RunningQuantile: warmup_norms cannot be 'abc'"),
        ({"zero_norms": [0]}, r"does not fit RunningQuantile: zero_norms cannot be \[0\]"),
        ({"threshold": 10.0}, "does not fit RunningQuantile: .*threshold"),
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    policy = Running(warmup_steps=2)
    follow(policy, [1.0, 2.0, 3.0])
    before = policy.state_dict()
    with pytest.raises(ValueError, match=message):
        policy.load_state_dict(broken(before, **change))
    assert policy.state_dict() == before
    assert policy.parameters() == Running(warmup_steps=2).parameters()


def test_a_plain_attribute_that_appears_after_the_constructor_is_saved_and_restored():
    class Late(LatestNorm):
        def _observe(self, norm, loss):
            super()._observe(norm, loss)
            self.largest = max(norm, getattr(self, "largest", 0.0))

    policy = Late()
    follow(policy, [1.0, 2.0, 9.0, 3.0])
    resumed = Late()
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
    assert resumed.largest == 9.0
    assert resumed.state_dict() == policy.state_dict()
    policy.load_state_dict(Late().state_dict())
    assert policy.state_dict() == Late().state_dict()


def test_a_state_broken_inside_changes_nothing():
    policy = Running(warmup_steps=2)
    follow(policy, [1.0, 2.0, 3.0])
    before = policy.state_dict()
    with pytest.raises((KeyError, TypeError, ValueError)):
        policy.load_state_dict(broken(before, learned_norms=99, quantile={}))
    assert policy.state_dict() == before
    assert policy.threshold() == before["quantile"]["value"]


def test_a_policy_by_hand_has_warmup_bounds_repr_state_and_clone():
    policy = LatestNorm(warmup_threshold=9.0, max_threshold=8.0)
    assert follow(policy, [1.0, 2.0, 3.0, nan, 5.0, 6.0]) == [8.0, 8.0, 4.0, 6.0, 6.0, 8.0]
    resumed = policy.clone()
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
    assert resumed.state_dict() == policy.state_dict()
    assert resumed.threshold() == policy.threshold() == 8.0


def test_a_policy_by_hand_may_fix_a_setting_of_its_parents():
    @dataclass
    class FixedWarmup(LatestNorm):
        warmup_steps: Steps = field(default=1, init=False)

    policy = FixedWarmup(3.0)
    assert follow(policy, [1.0, 2.0, 5.0]) == [inf, 3.0, 6.0]
    assert repr(policy) == "FixedWarmup(factor=3.0)"
    assert "warmup_steps" not in policy.parameters()
    with pytest.raises(TypeError, match="warmup_steps"):
        FixedWarmup(warmup_steps=2)
    resumed = policy.clone()
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
    assert resumed.threshold() == 15.0


def test_an_attribute_that_cannot_be_saved_is_named():
    class Remembering(LatestNorm):
        def __post_init__(self):
            super().__post_init__()
            self.seen = {"norms": {1.0, 2.0}}

    with pytest.raises(TypeError, match="attribute 'seen' holds a set, which cannot be saved"):
        Remembering().state_dict()


@pytest.mark.parametrize("value", [nan, 0.0, -1.0, -inf])
def test_a_policy_that_returns_no_threshold_is_named_with_the_value(value):
    class Wrong(LatestNorm):
        def _threshold(self):
            return value

    policy = Wrong(warmup_steps=1)
    policy.observe(1.0)
    with pytest.raises(ValueError, match=rf"Wrong\._threshold\(\) returned {value}; a threshold is > 0"):
        policy.threshold()


def test_the_loss_reaches_a_policy_only_where_it_is_finite_and_the_norm_is_learned():
    class Listening(LatestNorm):
        def __post_init__(self):
            super().__post_init__()
            self.heard = []
            self.observed = []

        def _observe_loss(self, loss):
            self.heard.append(loss)

        def _observe(self, norm, loss):
            self.observed.append(loss)

    policy = Listening()
    for norm, loss in [(1, 0.1), (2, nan), (3, 0.3), (nan, 0.4), (0, 0.5), (6, inf), (7, None), (8, 0.8)]:
        policy.observe(norm, loss)
    assert policy.heard == [0.1, 0.3, 0.8]
    assert policy.observed == [0.3, None, None, 0.8]


@pytest.mark.parametrize("threshold", [1e-300, 1e-30, 1.0, 1e300])
@pytest.mark.parametrize("ratio", [1.0, 1.5, 1e6])
def test_reciprocal_is_above_zero_and_at_most_the_threshold_at_every_scale(threshold, ratio):
    assert 0 < Fixed(threshold).reciprocal(threshold * ratio) <= threshold


def test_reciprocal_knows_the_bounds_of_the_threshold_and_the_warmup():
    policy = Running(warmup_steps=2, warmup_threshold=6.0, min_threshold=2.0, max_threshold=4.0)
    assert policy.reciprocal(8.0) == 2.0
    follow(policy, [1e-3, 1e-3])
    assert policy.reciprocal(8.0) == 0.5
    policy.relearn([1e3])
    assert policy.reciprocal(8.0) == 2.0


def test_a_formula_of_its_own_is_asked_once_active_and_is_bounded_by_the_threshold():
    class Half(LatestNorm):
        def _reciprocal(self, norm):
            return norm / 2

    policy = Half(warmup_threshold=3.0)
    assert policy.reciprocal(6.0) == 1.5  # the warm-up's guess knows no formula
    follow(policy, [2.0, 2.0])
    assert (policy.threshold(), policy.reciprocal(6.0), policy.reciprocal(100.0)) == (4.0, 3.0, 4.0)


AFTER_WARMUP = [
    Running(warmup_steps=4),
    Running(90, window=6, warmup_steps=4),
    FixedPercentile(warmup_steps=4),
    CenterMultiple("mean", window=5, warmup_steps=4),
    AutoClip(90, warmup_steps=4),
    ZClip(warmup_steps=4),
    SkipStep(window=7, warmup_steps=4),
    AdaGC(warmup_steps=4, warmup_threshold=9.0),
]


@pytest.mark.parametrize("policy", AFTER_WARMUP, ids=str)
def test_relearning_begins_as_from_a_warmup_of_those_norms_and_goes_on_learning(policy):
    first, recent, later = norm_streams(40)["lognormal"], [130.0, 90.0, 100.0, 120.0], norm_streams(20)["drift up"]
    relearned, fresh = policy.clone(), policy.clone()
    follow(relearned, first)
    relearned.relearn(recent)
    follow(fresh, recent)
    assert relearned.phase == "active"
    assert relearned.threshold() == fresh.threshold() > 0
    assert follow(relearned, later) == follow(fresh, later)


def test_relearning_keeps_the_counts_and_leaves_a_state_that_resumes():
    policy = Running(warmup_steps=3)
    follow(policy, [1.0, nan, 2.0, 0.0, 3.0, 4.0, inf])
    policy.relearn([50.0, 70.0])
    assert (policy.learned_norms, policy.nonfinite_norms, policy.zero_norms) == (4, 2, 1)
    resumed = policy.clone()
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
    assert resumed.state_dict() == policy.state_dict()
    assert follow(resumed, [80.0, 2.0]) == follow(policy, [80.0, 2.0])


def test_relearning_within_the_warmup_ends_it():
    policy = Running(warmup_steps=10)
    policy.observe(1.0)
    policy.relearn([5.0])
    assert (policy.phase, policy.threshold(), policy.state_dict()["warmup_norms"]) == ("active", 5.0, [])


def test_relearning_uses_no_list_of_the_callers():
    norms = [5.0, 6.0]
    policy = AutoClip()
    policy.observe(1.0)
    policy.relearn(norms)
    policy.observe(7.0)
    assert norms == [5.0, 6.0]


@pytest.mark.parametrize(
    ("policy", "scope", "response"),
    [
        (Running(), "global", "scale"),
        (Fixed(1.0), "global", "scale"),
        (ZClip(), "global", "reciprocal"),
        (SkipStep(), "global", "skip"),
        (AdaGC(), "parameter", "scale"),
    ],
    ids=str,
)
def test_a_policy_says_whose_norms_it_means_and_what_becomes_of_those_above(policy, scope, response):
    assert (policy.scope, policy.response) == (scope, response)


def test_a_policy_that_does_not_call_our_post_init_is_refused():
    class Bare(LatestNorm):
        def __post_init__(self):
            self.latest = 1.0

    with pytest.raises(TypeError, match=r"Bare\.__post_init__ must call super\(\)\.__post_init__\(\) first"):
        Clipper([torch.nn.Parameter(torch.zeros(1))], Bare())


def test_a_policy_with_a_constructor_by_hand_is_refused_with_the_cure():
    with pytest.raises(TypeError, match=r"ByHand has an __init__, .* write @dataclass above the class"):

        class ByHand(Running):
            def __init__(self, share=3):
                super().__init__(percentile=share)


@pytest.mark.parametrize("default", [{"default": 1.0}, {"kw_only": True}])
def test_a_setting_with_the_name_of_a_method_is_refused(default):
    @dataclass
    class Hiding(LatestNorm):
        threshold: float = field(**default)

    with pytest.raises(TypeError, match=r"Hiding\.threshold would hide a method of Policy: choose another name"):
        Hiding(threshold=1.0)


def test_a_plain_dataclass_keeps_the_repr_and_compares_by_identity():
    policy = LatestNorm(3.0)
    assert policy == policy != LatestNorm(3.0)
    assert len({policy, policy.clone()}) == 2
    assert repr(policy) == "LatestNorm(factor=3.0)"
