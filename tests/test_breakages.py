"""How the published rules break in practice, a test for each: ours do not."""

import json
from math import inf, nan

import numpy as np
import pytest
import torch
from torch import nn

from autoclip import (
    AutoClip,
    Clipper,
    Fixed,
    FixedPercentile,
    NoClip,
    RunningQuantile,
    SkipStep,
    ZClip,
    clip_grad_norm_,
)
from autoclip.controller import Controller
from tests.small_network import equal, network, one_weight, steps, train, weights_of
from tests.streams import follow, norm_streams

WITH_A_MEMORY = [
    ZClip(),
    ZClip(warmup_threshold=inf, least_spread=0.0),
    SkipStep(),
    AutoClip(),
    RunningQuantile(90, window=10, warmup_steps=1, warmup_threshold=inf),
]
every_policy_with_a_memory = pytest.mark.parametrize("policy", WITH_A_MEMORY, ids=str)


def realised_clip_rate(policy, norms, warmup=100):
    thresholds = follow(policy, norms)
    return np.mean(np.array(norms[warmup:]) > np.array(thresholds[warmup:]))


@every_policy_with_a_memory
@pytest.mark.parametrize("useless", [{5: nan}, {3: inf, 9: inf}, {70: nan, 80: inf}], ids=str)
def test_one_nan_norm_or_two_inf_in_the_warmup_leave_no_trace(policy, useless):
    norms = norm_streams(300)["lognormal"]
    expected = follow(policy.clone(), norms)
    disturbed = list(norms)
    for step, norm in useless.items():
        disturbed.insert(step, norm)
    actual = [c for c, norm in zip(follow(policy.clone(), disturbed), disturbed, strict=True) if np.isfinite(norm)]
    assert actual == expected


@every_policy_with_a_memory
def test_a_nan_gradient_costs_one_step_and_not_eleven(policy):
    weight = one_weight()
    clipper = Clipper([weight], policy.clone())
    with pytest.warns(UserWarning, match="non-finite gradient norm at step 3"):
        left = steps(clipper, weight, [1.0, 1.1, 0.9, nan, 1.0, 1.1])
    assert left[3] is None
    assert all(np.isfinite(gradient) for gradient in left[:3] + left[4:])


@pytest.mark.parametrize("just_measure", [lambda weight: Clipper([weight], NoClip()).step(), clip_grad_norm_])
def test_measuring_a_norm_beyond_float32_changes_no_gradient(just_measure):
    weight = nn.Parameter(torch.zeros(10))
    weight.grad = torch.full((10,), 1e30)
    norm = just_measure(weight) if just_measure is not clip_grad_norm_ else clip_grad_norm_([weight], max_norm=inf)
    assert float(norm) == pytest.approx(1e30 * 10**0.5, rel=1e-6)
    assert torch.equal(weight.grad, torch.full((10,), 1e30))


def test_fp16_gradients_with_a_norm_beyond_65504_are_measured_and_clipped():
    weight = nn.Parameter(torch.zeros(1000, dtype=torch.float16))
    weight.grad = torch.full((1000,), 3236.0, dtype=torch.float16)
    clipper = Clipper([weight], Fixed(10.0))
    assert float(clipper.step()) == pytest.approx(3236 * 1000**0.5, rel=1e-6)
    assert float(weight.grad.float().norm()) == pytest.approx(10.0, rel=1e-3)


@pytest.mark.parametrize("max_norm", [-1.0, nan])
def test_a_negative_or_nan_max_norm_is_an_error_and_flips_no_gradient(max_norm):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    with pytest.raises(ValueError, match="max_norm must be >= 0"):
        clip_grad_norm_([weight], max_norm)
    with pytest.raises(ValueError, match="threshold must be a number"):
        Fixed(max_norm)
    assert weight.grad.tolist() == [3.0, 4.0]


def test_falling_norms_are_clipped_as_the_percentile_says():
    norms = norm_streams(5100, seed=3)["drift down"]
    assert realised_clip_rate(RunningQuantile(90, rate=0.2), norms) == pytest.approx(0.1, abs=0.01)
    assert realised_clip_rate(AutoClip(90, history=None), norms) < 0.01  # the published rule


def test_growing_norms_are_clipped_as_the_percentile_says():
    norms = norm_streams(5100, seed=3)["drift up"]
    assert realised_clip_rate(RunningQuantile(90, rate=0.2), norms) == pytest.approx(0.1, abs=0.01)
    assert realised_clip_rate(AutoClip(90, history=None), norms) > 0.5  # the published rule


@pytest.mark.parametrize("policy", [ZClip(), ZClip(form="mean"), ZClip(form="max"), SkipStep()], ids=str)
def test_a_small_rise_after_constant_norms_is_no_spike(policy):
    controller = Controller(policy, policy.response)
    decisions = [controller.decide(norm, None) for norm in [1.0] * 300 + [1.0 + 1e-6, 1.01]]
    assert not any(one.clipped for one in decisions if one.phase == "active")


def test_with_a_fused_optimizer_and_a_grad_scaler_the_applied_gradients_are_unscaled_ones():
    weight, scaled = one_weight(), one_weight()
    plain = torch.optim.SGD([weight], lr=1.0, fused=True)
    fused = torch.optim.SGD([scaled], lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    ours, theirs = Clipper([weight], Fixed(1.0)), Clipper([scaled], Fixed(1.0))
    for slope in (0.5, 3.0, 0.25):
        for parameter, optimizer in ((weight, plain), (scaled, fused)):
            optimizer.zero_grad()
            loss = slope * parameter.sum()
            (loss if parameter is weight else scaler.scale(loss)).backward()
        ours.step()
        plain.step()
        scaler.unscale_(fused)
        assert float(theirs.step()) == slope
        scaler.step(fused)
        scaler.update()
        assert torch.equal(weight, scaled)


@every_policy_with_a_memory
@pytest.mark.parametrize("stop", [10, 150])
def test_the_history_survives_a_checkpoint(policy, stop):
    norms = norm_streams(300)["spikes"]
    uninterrupted, resumed = policy.clone(), policy.clone()
    expected = follow(uninterrupted, norms)[stop:]
    first = policy.clone()
    follow(first, norms[:stop])
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert follow(resumed, norms[stop:]) == expected


def test_the_history_kept_is_bounded():
    policy = AutoClip(history=500)
    follow(policy, norm_streams(2000)["lognormal"])
    assert len(policy.state_dict()["norms"]["values"]) == 500
    assert AutoClip().history == 10_000


def test_two_calls_in_one_step_are_one_observation():
    weight = one_weight()
    clipper = Clipper([weight], ZClip(warmup_steps=2))
    steps(clipper, weight, [0.5, 1.5])
    weight.grad = torch.tensor([1.2])
    clipper.step()
    before = clipper.state_dict()
    with pytest.warns(UserWarning, match=r"step\(\) was called again on the same gradients"):
        clipper.step()
    assert clipper.state_dict() == before
    assert clipper.policy.learned_norms == 3


def test_accumulated_gradients_are_one_observation():
    weight = one_weight()
    clipper = Clipper([weight], ZClip(warmup_steps=2, warmup_threshold=inf))
    for _ in range(3):
        weight.grad = None
        for micro_batch in (0.25, 0.5):
            (micro_batch * weight.sum()).backward()
        clipper.step()
    assert clipper.policy.learned_norms == 3
    assert clipper.policy.moments.mean == 0.75


def test_a_limit_that_skips_nearly_every_step_is_given_up():
    norms = norm_streams(494)["lognormal"]
    norms[100:] = [100 * norm for norm in norms[100:]]
    skipped = {}
    for relearn_after in ("auto", None):
        controller = Controller(FixedPercentile(90), "skip", relearn_after)
        skipped[relearn_after] = sum(controller.decide(norm, None).clipped_norm == 0 for norm in norms)
    assert skipped[None] == 394
    assert skipped["auto"] < 100


def test_a_resumed_run_with_zclip_ends_in_the_same_weights():
    ends = []
    for interrupted in (False, True):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        clipper = Clipper(net, ZClip(warmup_steps=3))
        train(net, optimizer, clipper, range(8))
        if interrupted:
            state = clipper.state_dict()
            clipper = Clipper(net, ZClip(warmup_steps=3))
            clipper.load_state_dict(state)
        train(net, optimizer, clipper, range(8, 16))
        ends.append(weights_of(net))
    assert equal(*ends)
