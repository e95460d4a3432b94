"""Replay: policies folded over recorded norms."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import autoclip
from autoclip import (
    AdaGC,
    AutoClip,
    Clipper,
    Fixed,
    FixedPercentile,
    LossAwareQuantile,
    NoClip,
    RunningQuantile,
    replay,
)
from autoclip.tuning.replay import SPIKE_STEPS, replay_all, spikes
from tests.small_network import Records
from tests.streams import loss_stream, norm_streams, with_useless_norms

STEPS = 400


@pytest.mark.parametrize("response", ["scale", "reciprocal", "skip"])
@pytest.mark.parametrize("kind", sorted(autoclip.POLICIES))
def test_a_replay_is_what_the_clipper_does(kind, response):
    """Norms with NaN, Inf and zeros among them; in a loop they are those of one weight's gradient."""
    cls = autoclip.POLICIES[kind]
    policy = cls(1.2) if kind == "fixed" else cls(warmup_steps=20)
    norms = [abs(norm) for norm in with_useless_norms(norm_streams(STEPS)["spikes"])]
    losses = loss_stream(len(norms))
    weight, records = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)), Records()
    clipper = Clipper([weight], policy.clone(), scope="global", response=response, sinks=[records])
    clipper._history.warn_once._topics |= {"nonfinite", "relearned", "repeat", "empty"}
    for norm, loss in zip(norms, losses, strict=True):
        weight.grad = torch.tensor([norm], dtype=torch.float64)
        clipper.step(loss=loss)
    result = replay(norms, policy, losses=losses, response=response)
    if kind != "adagc":  # its bound in the warm-up is on all groups together
        assert result.thresholds.tolist() == [record.threshold for record in records]
    assert result.clipped.tolist() == [record.clipped for record in records]
    assert result.clip_rate == clipper.clip_rate
    for left, norm, record in zip(result.left, norms, records, strict=True):
        if math.isfinite(norm) and norm > 0:
            assert left == pytest.approx(record.coefficient * norm, rel=1e-5)
    assert policy.learned_norms == 0


def test_a_fixed_threshold_by_hand():
    result = replay([1.0, 2.0, 8.0, 2.0, float("nan"), 0.0, 16.0], Fixed(4.0))
    assert result.left.tolist()[:4] == [1.0, 2.0, 4.0, 2.0]
    assert math.isnan(result.left[4])
    assert result.active.tolist() == [True] * 4 + [False, False, True]
    assert result.clip_rate == 2 / 5
    assert result.mean_coefficient == pytest.approx((1 + 1 + 0.5 + 1 + 0.25) / 5)
    assert result.longest_streak == 1
    assert result.relearned == 0


@pytest.mark.parametrize("percentile", [10, 50, 90])
def test_the_realised_rate_of_a_running_quantile_is_the_promised_one(percentile):
    result = replay(norm_streams(20_000)["drift up"], RunningQuantile(percentile))
    assert result.clip_rate == pytest.approx(1 - percentile / 100, abs=0.01)
    rolling = result.rolling_clip_rates()
    assert len(rolling) == result.active.sum() - 199
    assert abs(rolling - (1 - percentile / 100)).max() < 0.15


def test_rolling_rates_by_hand():
    result = replay([1.0, 3.0, 3.0, 1.0, 0.0, 3.0], Fixed(2.0))
    assert result.rolling_clip_rates(2).tolist() == [0.5, 1.0, 0.5, 0.5]
    assert result.rolling_clip_rates(9).size == 0


def test_a_level_that_stays_above_shows_as_a_streak_and_is_learned_anew():
    norms = [1.0, 1.1, 0.9] * 50 + [100.0, 110.0, 90.0] * 50
    result = replay(norms, FixedPercentile(100, warmup_steps=10), relearn_after=30)
    assert (result.longest_streak, result.relearned) == (30, 1)
    assert result.left[-1] == norms[-1]
    never = replay(norms, Fixed(1.0))
    assert (never.longest_streak, never.relearned) == (150, 0)


def test_spikes_are_those_above_six_standard_deviations_of_the_norms_before():
    random = np.random.default_rng(0)
    norms = 1 + 0.01 * random.standard_normal(1000)
    norms[[50, 400, 700]] = 5.0
    norms[300] = np.nan
    assert np.flatnonzero(spikes(norms)).tolist() == [400, 700]
    at = [i for i in range(SPIKE_STEPS, 1000) if i not in (300,)]
    finite = np.delete(norms, 300)
    by_hand = []
    for place in at:
        position = place - (place > 300)
        before = finite[max(0, position - SPIKE_STEPS) : position]
        if len(before) == SPIKE_STEPS and norms[place] > before.mean() + 6 * before.std():
            by_hand.append(place)
    assert by_hand == [400, 700]
    assert replay(norms, Fixed(2.0)).caught_spikes == (2, 2)
    assert replay(norms, NoClip()).caught_spikes == (0, 2)
    assert not spikes(norms[:SPIKE_STEPS]).any()


@pytest.mark.parametrize("count", [129, 130, 8319, 8320, 8321, 16512, 16513, 20_000])
def test_spikes_are_the_same_however_many_are_looked_at_at_once(count):
    """Where all values are finite the limits are those of one call over all windows, bit for bit."""
    values = np.random.default_rng(count).standard_cauchy(count)
    before = np.lib.stride_tricks.sliding_window_view(values[:-1], SPIKE_STEPS)
    expected = values[SPIKE_STEPS:] > before.mean(axis=1) + 6.0 * before.std(axis=1)
    assert spikes(values)[SPIKE_STEPS:].tolist() == expected.tolist()
    assert expected.any() or count < 1000


SCRIPT = """
import numpy as np
from autoclip import Fixed
from autoclip.tuning.replay import MANY_NORMS, replay_all

norms = np.ones(MANY_NORMS // 2)
print([one.clip_rate for one in replay_all(norms, [Fixed(0.5), Fixed(2.0)])])
"""


def test_a_plain_script_may_replay_many_norms(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "[1.0, 0.0]\n"), done.stderr


def test_many_norms_are_shared_among_processes(monkeypatch):
    monkeypatch.setattr("autoclip.tuning.replay.MANY_NORMS", 1)
    norms, policies = norm_streams(STEPS)["lognormal"], [RunningQuantile(), Fixed(1.0), NoClip()]
    losses = np.linspace(2, 1, STEPS)
    shared = replay_all(norms, policies, losses, processes=2)
    assert [one.summary() for one in shared] == [one.summary() for one in replay_all(norms, policies, losses)]


def test_losses_reach_the_policies_that_look_at_them():
    norms = norm_streams(STEPS)["lognormal"]
    rising = replay(norms, LossAwareQuantile(), losses=np.linspace(1, 5, STEPS))
    without = replay(norms, LossAwareQuantile(), losses=np.full(STEPS, np.nan))
    assert rising.thresholds[-1] < without.thresholds[-1] / 2
    assert without.thresholds.tolist() == replay(norms, LossAwareQuantile()).thresholds.tolist()


def test_a_summary_is_json_able_and_says_what_is_unknown():
    summary = replay([1.0, 2.0], RunningQuantile(warmup_steps=10)).summary()
    assert summary["clip_rate"] is None
    assert summary["rolling_clip_rate_min"] is None
    assert (summary["steps"], summary["active_steps"]) == (2, 0)
    assert replay([1.0, 2.0], NoClip()).summary()["final_threshold_is"] == "inf"
    empty = replay([], AutoClip()).summary()
    assert (empty["steps"], empty["clip_rate"], empty["longest_streak"]) == (0, None, 0)


def test_the_bound_of_a_warm_up_is_on_the_norm_before_it_is_learned():
    result = replay([5.0, 5.0], AdaGC(warmup_steps=2))
    assert result.thresholds.tolist() == [1.0, 1.0]
    assert result.left.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("norms", "losses", "message"),
    [
        ([1.0, -2.0], None, r"norms cannot be negative, got -2.0 at 1"),
        ([[1.0], [2.0]], None, r"norms must have one dimension, got shape \(2, 1\)"),
        ([1.0, 2.0], [1.0], r"there are 1 losses for 2 norms"),
    ],
)
def test_what_cannot_be_replayed_is_refused(norms, losses, message):
    with pytest.raises(ValueError, match=message):
        replay(norms, Fixed(1.0), losses=losses)


@pytest.mark.parametrize("policy", ["zclip", 1.0, Fixed])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(TypeError, match=r"policy must be a Policy such as RunningQuantile\(percentile=50\), got "):
        replay([1.0, 2.0], policy)
