"""What becomes of a norm above the threshold: scaled to it, further in, or the step is skipped."""

import copy
import warnings

import pytest
import torch
from torch.nn import functional as F

from autoclip import CenterMultiple, Clipper, Fixed, FixedPercentile, RunningQuantile, SkipStep, ZClip
from tests.small_network import POLICIES, Records, batch, equal, network, one_weight, steps, train, weights_of
from tests.streams import loss_stream, norm_streams

IMPLEMENTATIONS = {"foreach": {"foreach": True}, "fused": {"fused": True}, "for-loop": {"foreach": False}}
OPTIMIZERS = {
    "sgd": lambda params, **kw: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1, **kw),
    "adamw": lambda params, **kw: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1, **kw),
    "adagrad": lambda params, **kw: torch.optim.Adagrad(params, lr=0.1, weight_decay=0.1, **kw),
}


@pytest.mark.parametrize("scope", ["global", "group", "parameter"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_step_has_no_effect_on_parameters_and_optimizer(optimizer, implementation, scope):
    net = network()
    optimizer = OPTIMIZERS[optimizer](net.parameters(), **IMPLEMENTATIONS[implementation])
    clipper = Clipper(optimizer, SkipStep(warmup_steps=4, max_threshold=1e3), scope=scope)
    train(net, optimizer, clipper, range(5))
    before, state = weights_of(net), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    (1e6 * F.mse_loss(net(batch(6)[0]), batch(6)[1])).backward()
    clipper.step()
    optimizer.step()
    assert equal(weights_of(net), before)
    assert equal(optimizer.state_dict(), state)
    record = clipper.last
    assert (record.skipped, record.clipped, record.finite, record.coefficient) == (True, True, True, 0.0)
    assert (clipper.skipped_steps, all(p.grad is None for p in net.parameters())) == (1, True)
    train(net, optimizer, clipper, [7])
    assert not equal(weights_of(net), before)


def test_one_skipped_group_keeps_its_momentum_while_the_other_moves():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    clipper = Clipper(net, SkipStep(warmup_steps=4), scope="group", groups={"first": "^0", "last": "^2"})
    train(net, optimizer, clipper, range(5))
    before, state = weights_of(net), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.zero_grad()
    F.mse_loss(net(batch(0)[0]), batch(0)[1]).backward()
    for parameter in net[0].parameters():
        parameter.grad *= 1e6
    clipper.step()
    optimizer.step()
    after, new_state = weights_of(net), optimizer.state_dict()["state"]
    assert equal(after[:2], before[:2])
    assert all(equal(new_state[place], state[place]) for place in (0, 1))
    assert not any(torch.equal(first, second) for first, second in zip(after[2:], before[2:], strict=True))
    assert (clipper.last.clipped, clipper.last.skipped, clipper.skipped_steps) == (True, False, 0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("response", ["scale", "reciprocal", "skip"])
def test_any_policy_may_have_any_response_and_learns_the_same_from_it(policy, response):
    norms, losses = norm_streams(120)["spikes"], loss_stream(120)
    weight, sink, plain = one_weight(), Records(), Records()
    clipper = Clipper([weight], POLICIES[policy](), response=response, relearn_after=None, sinks=[sink])
    left = steps(clipper, weight, norms, losses)
    steps(Clipper([weight], POLICIES[policy](), relearn_after=None, sinks=[plain]), weight, norms, losses)
    assert [record.threshold for record in sink] == [record.threshold for record in plain]
    assert [record.clipped for record in sink] == [record.clipped for record in plain]
    for norm, record, after in zip(norms, sink, left, strict=True):
        if not record.clipped:
            assert after == torch.tensor(norm).item()
        elif response == "scale" or record.phase == "warmup":
            assert after == pytest.approx(record.threshold, rel=1e-5)
        elif response == "skip":
            assert after is None
        else:
            assert after == pytest.approx(record.threshold**2 / norm, rel=1e-5)


SHIFTED = {
    "skip step": (lambda: SkipStep(sigmas=6, warmup_steps=20), {}, 20),
    "frozen percentile": (lambda: FixedPercentile(90, warmup_steps=20), {"response": "skip"}, 20),
    "tracker": (lambda: RunningQuantile(90, rate=0.01, warmup_steps=20), {"response": "skip"}, 20),
    "long window": (lambda: CenterMultiple(warmup_steps=20, window=1000), {"response": "skip"}, 20),
    "z-score": (lambda: ZClip(warmup_steps=20), {"response": "skip"}, 20),
    "frozen, reciprocal": (
        lambda: FixedPercentile(90, warmup_steps=20),
        {"response": "reciprocal", "relearn_after": 7},
        7,
    ),
}


@pytest.mark.parametrize("scope", ["global", "parameter"])
@pytest.mark.parametrize("kind", SHIFTED)
def test_a_new_level_of_norms_does_not_stall_training_and_is_told_once(kind, scope):
    make, options, limit = SHIFTED[kind]
    weight, sink = one_weight(), Records()
    clipper = Clipper([weight], make(), scope=scope, sinks=[sink], **options)
    stream = norm_streams(140)["lognormal"]
    steps(clipper, weight, stream[:60])
    quiet = sum(record.clipped for record in sink[-40:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps(clipper, weight, [100 * norm for norm in stream[60:100]])
        steps(clipper, weight, [1e4 * norm for norm in stream[100:]])
    shifted = [record.clipped for record in sink[60:100]]
    assert shifted[0]
    assert sum(shifted) <= limit + max(6, quiet)
    assert sum(record.clipped for record in sink[100:]) <= limit + max(6, quiet)
    relearned = [str(one.message) for one in caught if "starts again" in str(one.message)]
    if kind == "skip step":  # its window takes in what it skips, and so it resumes by itself
        assert len(relearned) <= 1
    else:
        where = "" if scope == "global" else " in 0"
        assert len(relearned) == len(caught) == 1
        assert relearned[0].startswith(f"{limit} steps in a row were clipped{where} by step ")
        assert relearned[0].endswith("the policy starts again from their norms (said once)")
        assert caught[0].filename.endswith("small_network.py")  # where step() was called


def test_a_constant_is_meant_to_stay_and_a_limit_of_none_never_relearns():
    for policy, options in ((Fixed(1.0), {}), (FixedPercentile(50, warmup_steps=1), {"relearn_after": None})):
        weight = one_weight()
        clipper = Clipper([weight], policy, response="skip", **options)
        assert steps(clipper, weight, [1.0, *[100.0] * 50])[1:] == [None] * 50


def test_skipped_steps_are_counted_whatever_the_reason():
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0), response="skip")
    with pytest.warns(UserWarning, match="non-finite"):
        steps(clipper, weight, [0.5, 2.0, float("nan"), 3.0, 0.0])
    assert clipper.skipped_steps == 3
    assert clipper.clip_rate == 2 / 3
    assert clipper.mean_coefficient == 1 / 3  # a skipped step leaves nothing
