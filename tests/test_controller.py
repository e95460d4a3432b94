"""What becomes of a norm, and how a policy gets out of a level that it clips for ever."""

from math import inf, nan

import pytest

from autoclip.controller import Controller, Decision
from autoclip.policies import (
    AdaGC,
    AutoClip,
    CenterMultiple,
    Fixed,
    FixedPercentile,
    RunningQuantile,
    SkipStep,
    ZClip,
)
from tests.streams import norm_streams


def decide(controller, norms, loss=None):
    return [controller.decide(norm, loss) for norm in norms]


def warmed_up(response, relearn_after="auto", **bounds):
    """A controller at threshold 1, which moves with the norms by a tenth of a percent a step at most."""
    controller = Controller(RunningQuantile(50, rate=1e-3, warmup_steps=3, **bounds), response, relearn_after)
    decide(controller, [1.0] * 3)
    return controller


@pytest.mark.parametrize(("response", "left"), [("scale", 2.0), ("reciprocal", 0.5), ("skip", 0.0)])
def test_a_norm_above_the_threshold_becomes_what_the_response_says(response, left):
    controller = Controller(Fixed(2.0), response)
    assert controller.decide(8.0, None) == Decision(8.0, 2.0, "active", clipped=True, clipped_norm=left)
    assert controller.decide(2.0, None) == Decision(2.0, 2.0, "active", clipped=False, clipped_norm=2.0)
    assert (controller.active_steps, controller.clipped_steps) == (2, 1)


@pytest.mark.parametrize("response", ["scale", "reciprocal", "skip"])
def test_the_warmup_always_scales(response):
    controller = Controller(ZClip(warmup_steps=3, warmup_threshold=2.0), response)
    assert decide(controller, [8.0] * 3) == [Decision(8.0, 2.0, "warmup", clipped=True, clipped_norm=2.0)] * 3
    assert (controller.active_steps, controller.clipped_steps) == (0, 0)
    assert controller.decide(1.0, None).phase == "active"


@pytest.mark.parametrize(("policy", "expected"), [(RunningQuantile(100), 3.0), (AutoClip(100), 9.0)])
def test_a_policy_learns_after_the_decision_and_an_inclusive_one_before(policy, expected):
    controller = Controller(policy, "scale")
    policy.relearn([3.0])
    assert controller.decide(9.0, None).threshold == expected


@pytest.mark.parametrize("useless", [nan, inf, 0.0])
def test_norms_that_are_zero_or_not_finite_are_neither_clipped_nor_counted_and_end_no_run_of_clipped_steps(useless):
    controller = warmed_up("skip", relearn_after=4)
    decisions = decide(controller, [50.0, 50.0, useless, 50.0, useless])
    assert [one.clipped for one in decisions] == [True, True, False, True, False]
    assert (controller.active_steps, controller.clipped_steps) == (3, 3)
    assert controller.decide(50.0, None).relearned == 4


@pytest.mark.parametrize(
    ("policy", "response", "limit"),
    [
        (RunningQuantile(), "skip", 20),
        (SkipStep(), "skip", 20),
        (SkipStep(), "scale", 1280),
        (RunningQuantile(), "scale", 1000),
        (ZClip(), "reciprocal", 1000),
        (CenterMultiple(window=7), "scale", 70),
        (Fixed(1.0), "skip", None),
        (RunningQuantile(0), "skip", None),
        (AutoClip(0), "scale", None),
    ],
    ids=str,
)
def test_a_new_level_shows_after_20_skipped_steps_or_ten_windows_clipped(policy, response, limit):
    assert Controller(policy, response).relearn_after == limit
    assert Controller(policy, response, None).relearn_after is None
    assert Controller(policy, response, 3).relearn_after == 3


@pytest.mark.parametrize("response", ["skip", "scale", "reciprocal"])
def test_a_lasting_new_level_is_relearned_once_from_its_own_norms(response):
    controller = warmed_up(response)
    limit = {"skip": 20, "scale": 1000, "reciprocal": 1000}[response]
    decisions = decide(controller, [100.0] * (limit + 200))
    assert [one.relearned for one in decisions] == [0] * (limit - 1) + [limit] + [0] * 200
    assert all(one.clipped for one in decisions[:limit])
    assert decisions[limit - 1].threshold < 5  # what was in force in the step that told
    assert decisions[limit].threshold == 100.0
    assert 80 < sum(one.clipped for one in decisions[limit:]) < 120  # percentile 50


@pytest.mark.parametrize("policy", [SkipStep(), ZClip(), RunningQuantile(90), FixedPercentile(90)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_level_a_hundred_times_as_high_is_skipped_for_20_steps_at_most(policy, seed):
    controller = Controller(policy.clone(), "skip")
    norms = norm_streams(600, seed)["shift up"]
    skipped = [one.clipped_norm == 0 for one in decide(controller, norms)]
    assert skipped[300]
    assert sum(skipped[300:350]) <= 20 + 10
    assert sum(skipped[350:]) <= 50


def test_without_the_guard_a_frozen_threshold_skips_every_step_of_a_new_level():
    controller = Controller(FixedPercentile(90), "skip", relearn_after=None)
    assert all(one.clipped_norm == 0 for one in decide(controller, norm_streams(600)["shift up"])[300:])


def test_adagc_reaches_a_level_above_the_bound_of_its_warmup():
    controller = Controller(AdaGC(warmup_steps=5), "scale")
    decide(controller, [0.5] * 5 + [50.0] * 1000)
    assert controller.decide(50.0, None).clipped_norm == 50.0


def test_an_unclipped_step_begins_the_count_anew():
    controller = warmed_up("skip")
    assert not any(one.relearned for one in decide(controller, ([100.0] * 19 + [0.5]) * 10))
    assert controller.clipped_steps == 190


def test_the_policy_begins_anew_from_as_many_recent_norms_as_its_window_holds():
    controller = Controller(CenterMultiple("mean", multiple=1.0, window=3, warmup_steps=1), "skip", relearn_after=5)
    controller.policy.observe(1.0)
    for norm in (100.0, 200.0, 400.0, 800.0, 1600.0):  # each above the mean of the three before
        relearned = controller.decide(norm, None).relearned
    assert relearned == 5
    assert controller.policy.state_dict()["norms"] == {"values": [400.0, 800.0, 1600.0]}
    single = Controller(CenterMultiple("mean", multiple=1.0, window=1, warmup_steps=1), "skip", relearn_after=2)
    single.policy.observe(1.0)
    assert [one.relearned for one in decide(single, [5.0, 9.0])] == [0, 2]
    assert single.policy.state_dict()["norms"] == {"values": [9.0]}


def test_the_state_does_not_grow_with_the_steps_clipped():
    controller = Controller(FixedPercentile(1, warmup_steps=2), "scale", relearn_after=5000)
    decide(controller, [1.0, 1.0] + [9.0] * 3000)
    assert controller.state_dict()["recent"] == [9.0] * 100


def test_judging_learns_and_counts_nothing():
    controller = warmed_up("skip", relearn_after=2)
    controller.decide(50.0, None)
    before = controller.state_dict()
    assert [controller.judge(norm).clipped_norm for norm in (0.5, 70.0, 80.0)] == [0.5, 0.0, 0.0]
    assert controller.judge(70.0).relearned == 0
    assert not controller.judge(inf).clipped
    assert controller.judge(nan).clipped_norm != controller.judge(nan).clipped_norm
    assert controller.state_dict() == before
    assert controller.decide(50.0, None).relearned == 2


def test_judging_in_the_warmup_scales():
    controller = Controller(SkipStep(warmup_threshold=2.0), "skip")
    assert controller.judge(8.0) == Decision(8.0, 2.0, "warmup", clipped=True, clipped_norm=2.0)


@pytest.mark.parametrize(("norm", "total", "left"), [(8.0, 12.0, 2.0), (2.0, 2.5, 2.0), (0.0, 12.0, 0.0)])
def test_a_bound_on_all_groups_together_scales_and_teaches_what_is_left(norm, total, left):
    controller = Controller(AdaGC(absolute=3.0, warmup_steps=2), "scale")
    decided = controller.decide(norm, None, total)
    assert decided == Decision(norm, 3.0, "warmup", clipped=left < norm, clipped_norm=left, is_shared=True)
    assert controller.policy.state_dict()["warmup_norms"] == ([left] if left else [])
    assert (controller.active_steps, controller.clipped_steps) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": ...}, "the state has no policy"),
        ({"streak": ..., "recent": ...}, "the state has no streak, recent"),
        ({"policy": SkipStep().state_dict()}, "state of a SkipStep cannot be loaded into a RunningQuantile"),
        ({"active_steps": -1}, r"counts in a state must be whole numbers, got \[-1, "),
        ({"clipped_steps": 1.5}, r"counts in a state must be whole numbers"),
        ({"streak": "3"}, r"counts in a state must be whole numbers"),
        ({"recent": ["loud"]}, "could not convert string to float"),
        ({"streak": True}, "in a state must be"),
        ({"recent": [nan]}, "in a state must be"),
        ({"recent": [-1.0]}, "in a state must be"),
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    controller = warmed_up("skip")
    decide(controller, [9.0, 9.0])
    before = controller.state_dict()
    broken = {key: value for key, value in {**before, **change}.items() if value is not Ellipsis}
    with pytest.raises(ValueError, match=message):
        controller.load_state_dict(broken)
    assert controller.state_dict() == before


@pytest.mark.parametrize("policy", [RunningQuantile(90, max_threshold=1.0), ZClip(max_threshold=1.0)])
def test_what_the_users_own_bound_clips_is_no_new_level(policy):
    controller = Controller(policy, "scale", 50)
    decisions = [controller.decide(5.0 + step % 2, None) for step in range(1000)]
    assert all(decision.clipped for decision in decisions[200:])
    assert not any(decision.relearned for decision in decisions)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, nan, True, False, "never", [3]])
def test_a_number_of_steps_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="relearn_after must be a whole number >= 1, 'auto' or None"):
        Controller(RunningQuantile(), "scale", wrong)


def test_an_unclipped_step_at_the_users_own_bound_ends_a_streak_too():
    policy = RunningQuantile(50, rate=1, warmup_steps=1, warmup_threshold=inf, max_threshold=2.0)
    controller = Controller(policy, "scale", relearn_after=3)
    made = decide(controller, [1.0, 5.0, 5.0, 1.0, 5.0])
    assert [one.threshold for one in made][3] == 2.0
    assert [one.relearned for one in made] == [0] * 5
