from math import inf

import pytest

from autoclip.policies import AutoClip, RunningQuantile
from tests.references import (
    adaptive_grad_clipper_thresholds,
    geometric_quantile,
    percentile_clipping_limits,
    quantile_clip_thresholds,
    running_quantile_thresholds,
)
from tests.streams import follow, norm_streams

STEPS = 2000
STREAMS = ["lognormal", "drift up", "drift down", "spikes"]


@pytest.mark.parametrize(("percentile", "rate"), [(10, 0.1), (50, 0.05), (90, 0.1), (99, 0.2)])
@pytest.mark.parametrize("stream", STREAMS)
def test_tracker_started_at_the_warmups_percentile_equals_the_oracle(stream, percentile, rate):
    norms = norm_streams(STEPS, seed=5)[stream]
    thresholds = follow(RunningQuantile(percentile, rate, warmup_steps=100, warmup_threshold=inf), norms)
    expected = running_quantile_thresholds(norms, percentile, rate, 100)
    assert thresholds[100:] == pytest.approx(expected, rel=1e-9, abs=0)


def test_without_warmup_the_tracker_starts_at_the_first_norm():
    norms = norm_streams(STEPS, seed=6)["lognormal"]
    thresholds = follow(RunningQuantile(50, 0.1, warmup_steps=0), norms)
    expected = geometric_quantile([[norm] for norm in norms[1:-1]], norms[0], 50, 0.1)
    assert thresholds[:2] == [inf, norms[0]]
    assert thresholds[2:] == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize(("percentile", "window"), [(10, 1000), (50, 100), (90, 1000), (99, 17)])
@pytest.mark.parametrize("stream", ["drift up", "spikes"])
def test_with_a_window_it_is_the_exact_percentile_of_the_norms_before(stream, percentile, window):
    norms = norm_streams(STEPS, seed=5)[stream]
    thresholds = follow(RunningQuantile(percentile, window=window, warmup_steps=20), norms)
    assert thresholds[20:] == pytest.approx(quantile_clip_thresholds(norms, percentile, window)[20:], rel=1e-9, abs=0)


def test_published_vector_of_the_exclusive_quantile():
    policy = RunningQuantile(90, window=1000, warmup_steps=0, warmup_threshold=inf)
    assert follow(policy, [3.0, 1.0, 2.0, 10.0]) == pytest.approx([inf, 3.0, 2.8, 2.8], rel=1e-12, abs=0)


@pytest.mark.parametrize("stream", ["lognormal", "drift down"])
def test_published_setting_of_the_pypi_package_autoclip(stream):
    # One norm is known before the first threshold, and the first step is not clipped: a warm-up of one, unclipped.
    norms = norm_streams(STEPS, seed=7)[stream]
    policy = RunningQuantile(90, window=1000, warmup_steps=1, warmup_threshold=inf)
    assert follow(policy, norms) == pytest.approx(quantile_clip_thresholds(norms, 90, 1000), rel=1e-9, abs=0)


@pytest.mark.parametrize(("stream", "max_norm"), [("lognormal", 2.0), ("drift down", 1.0), ("spikes", inf)])
def test_published_setting_of_trellis(stream, max_norm):
    # max_norm is the threshold until the ring of 1000 is full, and the largest one after that.
    norms = norm_streams(STEPS, seed=7)[stream]
    settings = {"percentile": 95, "window": 1000, "warmup_steps": 1000}
    policy = RunningQuantile(**settings, warmup_threshold=max_norm, max_threshold=max_norm)
    expected = adaptive_grad_clipper_thresholds(norms, max_norm=max_norm)
    assert follow(policy, norms) == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("index", [0, 50, 99])
@pytest.mark.parametrize("stream", ["lognormal", "spikes"])
def test_published_setting_of_bitsandbytes(stream, index):
    # Index i of 100 sorted norms is percentile 100 i / 99, for each parameter by itself (scope "parameter"). There the
    # current norm counts towards its own limit, so that ours is theirs of the step before; the inclusive policy is
    # theirs in the same step. Until 100 norms are known their ring holds copies of the first.
    norms = norm_streams(STEPS, seed=7)[stream]
    limits = percentile_clipping_limits(norms, index)
    predicting = follow(RunningQuantile(100 * index / 99, window=100, warmup_steps=100), norms)
    assert predicting[100:] == pytest.approx(limits[99:-1], rel=1e-9, abs=0)
    inclusive = follow(AutoClip(100 * index / 99, history=100), norms)
    assert inclusive[99:] == pytest.approx(limits[99:], rel=1e-9, abs=0)


def test_the_oracle_reproduces_the_published_vector():
    assert quantile_clip_thresholds([3, 1, 2, 10], 90, 1000) == pytest.approx([inf, 3.0, 2.8, 2.8], rel=1e-12, abs=0)
