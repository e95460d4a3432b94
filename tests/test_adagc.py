from math import hypot, inf

import numpy as np
import pytest
import torch

from autoclip import Clipper
from autoclip.controller import Controller
from autoclip.policies import AdaGC
from tests.references import adagc
from tests.streams import follow, norm_streams

STEPS = 1500
SETTINGS = {
    "published": {},
    "loose and short": {"relative": 1.5, "absolute": 0.3, "decay": 0.9, "warmup_steps": 7},
}


def several(steps, seed=5):
    """Norms of three tensors of very different size, step by step."""
    streams = norm_streams(steps, seed)
    return list(zip(streams["lognormal"], [1e-3 * n for n in streams["drift up"]], streams["spikes"], strict=True))


def test_published_vector():
    policy = AdaGC(warmup_steps=3)
    follow(policy, [0.5, 2.0, 4.0])
    assert policy.gamma == 0.5
    bounded = AdaGC(warmup_steps=1)
    bounded.observe(2.0)
    assert bounded.gamma == 1.0


def test_the_oracle_reproduces_the_published_vector():
    assert adagc([[0.5], [2.0], [4.0]])[1][-1] == [0.5]
    assert adagc([[2.0]])[1] == [[1.0]]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("stream", ["lognormal", "drift up", "spikes"])
def test_a_single_tensor_equals_the_oracle_from_the_first_step_on(stream, settings):
    norms = norm_streams(STEPS, seed=5)[stream]
    controller = Controller(AdaGC(**settings), "scale", relearn_after=None)
    left, gammas = adagc([[norm] for norm in norms], **settings)
    actual = [controller.decide(norm, None).clipped_norm for norm in norms]
    assert actual == pytest.approx([step[0] for step in left], rel=1e-9, abs=0)
    assert controller.policy.gamma == pytest.approx(gammas[-1][0], rel=1e-9, abs=0)
    assert 0.1 < np.mean(np.array(actual) < np.array(norms)) < 1


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_several_tensors_clipped_together_in_the_warmup_equal_the_oracle(settings):
    norms = several(STEPS)
    controllers = [Controller(AdaGC(**settings), "scale", relearn_after=None) for _ in norms[0]]
    left, gammas = adagc(norms, **settings)
    for step, own in enumerate(norms):
        total = hypot(*own)
        decided = [controller.decide(norm, None, total) for controller, norm in zip(controllers, own, strict=True)]
        assert [one.clipped_norm for one in decided] == pytest.approx(left[step], rel=1e-9, abs=0)
    assert [controller.policy.gamma for controller in controllers] == pytest.approx(gammas[-1], rel=1e-9, abs=0)


def test_a_clipper_over_several_parameters_equals_the_oracle():
    norms = several(300)
    settings = {"warmup_steps": 20}
    weights = [torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in norms[0]]
    clipper = Clipper(weights, AdaGC(**settings))
    for own, left in zip(norms, adagc(norms, **settings)[0], strict=True):
        for weight, norm in zip(weights, own, strict=True):
            weight.grad = torch.tensor([norm], dtype=torch.float64)
        clipper.step()
        # torch's constant: a gradient scaled to c has the norm c - 1e-6 c / norm, or .999 c where c is tiny
        assert [weight.grad.item() for weight in weights] == pytest.approx(left, rel=1.001e-3, abs=0)
    assert [policy.gamma for policy in clipper.policies.values()] == pytest.approx(
        adagc(norms, **settings)[1][-1], rel=1e-9, abs=0
    )


def test_a_number_as_warmup_threshold_bounds_each_tensor_by_itself():
    policy = AdaGC(warmup_steps=2, warmup_threshold=7.0)
    assert policy.warmup_total is None
    assert follow(policy, [3.0, 4.0, 1.0]) == [7.0, 7.0, pytest.approx(3.15)]
    assert AdaGC(warmup_threshold=inf).threshold() == inf


def test_firas_bound_on_growth():
    norms = norm_streams(300, seed=5)["spikes"]
    left = [norms[0]]
    for norm in norms[1:]:
        left.append(min(norm, 1.01 * left[-1]))
    policy = AdaGC(relative=1.01, decay=0, warmup_steps=1, warmup_threshold=inf)
    assert follow(policy, norms)[1:] == pytest.approx([1.01 * norm for norm in left[:-1]], rel=1e-12)


@pytest.mark.parametrize("level", [1e-3, 50.0])
def test_a_new_level_is_learned_whatever_the_bound_of_the_warmup_was(level):
    policy = AdaGC(warmup_steps=2)
    follow(policy, [1e-6, 1e-6])
    policy.relearn([2 * level, level])
    assert policy.threshold() == pytest.approx(1.05 * level)


def test_a_share_below_one_shrinks_the_threshold_but_never_to_zero():
    policy = AdaGC(relative=0.5, decay=0.0, warmup_steps=1)
    thresholds = follow(policy, [1.0] * 1200)
    assert thresholds[1:4] == [0.5, 0.25, 0.125]
    assert 0 < thresholds[-1] < 1e-300


@pytest.mark.parametrize("bounds", [{"max_threshold": 0.5}, {"absolute": 0.1, "min_threshold": 0.5}])
@pytest.mark.parametrize("by_function", [False, True])
def test_the_bounds_hold_in_the_warmup_too(bounds, by_function):
    weight = torch.nn.Parameter(torch.zeros(1))
    clipper = Clipper([weight], AdaGC(warmup_steps=5, **bounds), scope="global")
    clip_fn = (lambda limit: torch.nn.utils.clip_grad_norm_([weight], limit)) if by_function else None
    for norm in (0.6, 0.7, 0.9, 5.0):
        weight.grad = torch.tensor([norm])
        assert clipper.threshold == 0.5
        clipper.step(clip_fn=clip_fn)
        assert clipper.last.threshold == 0.5
        assert weight.grad.item() == pytest.approx(0.5, rel=1e-5)
