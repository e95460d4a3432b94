"""Whose norm is meant: a threshold for each group of parameters, or for each parameter."""

import copy
import pickle
import warnings
from math import inf, nan, sqrt

import pytest
import torch
from torch import nn

from autoclip import AdaGC, Clipper, Fixed, FixedPercentile, RunningQuantile, SkipStep, ZClip
from tests.grouped import (
    RESPONSES,
    backward,
    clipper_of,
    feed,
    gradients,
    members,
    weights_of_one,
)
from tests.small_network import Records, equal, network, train, weights_of


@pytest.mark.parametrize("scope", ["parameter", "group"])
@pytest.mark.parametrize("threshold", [0.01, 0.3, 2.0])
def test_a_constant_clips_each_group_as_torch_does_bit_for_bit(scope, threshold):
    ours, theirs = network(), network()
    clipper = clipper_of(ours, Fixed(threshold), scope)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05) for net in (ours, theirs)]
    for step in range(10):
        backward(ours, step)
        backward(theirs, step)
        clipper.step()
        for group in members(theirs, scope).values():
            torch.nn.utils.clip_grad_norm_(group, threshold)
        assert equal(gradients(ours), gradients(theirs))
        for optimizer in optimizers:
            optimizer.step()


def test_group_scope_equals_separate_clippers():
    together, apart = network(), network()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in (together, apart)]
    one = clipper_of(together, RunningQuantile(75, warmup_steps=5), "group")
    two = {"first": Clipper(apart[0], RunningQuantile(75, warmup_steps=5))}
    two["last"] = Clipper(apart[2], RunningQuantile(75, warmup_steps=5))
    for step in range(40):
        backward(together, step)
        backward(apart, step)
        one.step()
        for clipper in two.values():
            clipper.step()
        for optimizer in optimizers:
            optimizer.step()
    assert equal(weights_of(together), weights_of(apart))
    assert one.clip_rates == {name: clipper.clip_rate for name, clipper in two.items()}
    for name, clipper in two.items():
        assert one.state_dict()["groups"][name] == clipper.state_dict()["groups"]["all"]


def test_a_tiny_group_is_measured_as_by_itself():
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(10_000))]
    clipper = Clipper(weights, FixedPercentile(100, warmup_steps=1), scope="parameter")
    for element in (2e-27, 8e-27):
        weights[0].grad, weights[1].grad = torch.ones(1), torch.full((10_000,), element)
        clipper.step()
    assert clipper.threshold == pytest.approx({"0": 1.0, "1": 2e-25}, rel=1e-6, abs=0)
    assert weights[1].grad.max().item() == pytest.approx(2e-27, rel=2e-3, abs=0)
    assert weights[0].grad.item() == 1.0


def bad_step(on_nonfinite, bad, scope="parameter"):
    """A network after a few steps of its clipper, with a gradient that is not finite in the last layer's weight."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    clipper = clipper_of(net, RunningQuantile(warmup_steps=2), scope, on_nonfinite=on_nonfinite)
    train(net, optimizer, clipper, range(5))
    backward(net, 5)
    net[2].weight.grad[0, 0] = bad
    return net, optimizer, clipper


def learned(clipper):
    """The state of each group but for the count of non-finite norms."""
    states = clipper.state_dict()["groups"]
    return {
        name: controller | {"policy": controller["policy"] | {"nonfinite_norms": 0}}
        for name, controller in states.items()
    }


@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("scope", ["parameter", "group"])
def test_one_group_that_is_not_finite_skips_the_step_of_all_and_no_policy_learns(scope, bad):
    net, optimizer, clipper = bad_step("skip", bad, scope)
    before, weights = learned(clipper), weights_of(net)
    with pytest.warns(UserWarning, match=r"step 5, in 2\.weight: the step has no effect"):
        clipper.step()
    optimizer.step()
    assert gradients(net) == [None] * 4
    assert equal(weights_of(net), weights)
    assert learned(clipper) == before
    assert (clipper.last.skipped, clipper.last.finite, clipper.last.coefficient) == (True, False, 0.0)
    counts = {name: policy.nonfinite_norms for name, policy in clipper.policies.items()}
    assert counts == {name: int(name in ("2.weight", "last")) for name in counts}


@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("scope", ["parameter", "group"])
def test_propagating_does_as_torch_group_by_group_and_learns_nothing(scope, bad):
    net, _, clipper = bad_step("propagate", bad, scope)
    theirs, thresholds, before = network(), clipper.threshold, learned(clipper)
    for ours, parameter in zip(net.parameters(), theirs.parameters(), strict=True):
        parameter.grad = ours.grad.clone()
    with pytest.warns(UserWarning, match=r"in 2\.weight: passed on as it is"):
        clipper.step()
    for name, group in members(theirs, scope).items():
        torch.nn.utils.clip_grad_norm_(group, thresholds[name])
    for ours, parameter in zip(gradients(net), gradients(theirs), strict=True):
        torch.testing.assert_close(ours.nan_to_num(7), parameter.nan_to_num(7), rtol=1e-6, atol=0)  # norms in float64
    assert learned(clipper) == before
    assert (clipper.last.skipped, clipper.last.finite) == (False, False)


@pytest.mark.parametrize("mode", ["norm", "value", "agc", "param_rms"])
@pytest.mark.parametrize("scope", ["global", "group", "parameter"])
@pytest.mark.parametrize("response", RESPONSES)
def test_a_second_call_in_the_same_step_is_recognised(scope, response, mode):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    policy = RunningQuantile(30, warmup_steps=2)
    clipper = clipper_of(net, policy, scope, response=response, mode=mode, relearn_after=None)
    for step in range(14):
        loss = backward(net, step)
        norm = clipper.step(loss=loss)
        state, left, last = clipper.state_dict(), gradients(net), clipper.last
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert torch.equal(clipper.step(loss=9.0), norm)
        assert [str(w.message)[:26] for w in caught] == ["step() was called again on"] * (step == 0)
        assert clipper.state_dict() == state
        assert equal(gradients(net), left)
        assert clipper.last is last
        optimizer.step()
    assert clipper.clip_rate > 0.2


def test_the_record_tells_the_bound_on_the_total_norm_and_the_share_that_is_left():
    weights, sink = weights_of_one(2), Records()
    clipper = Clipper(weights, FixedPercentile(100, warmup_steps=1), scope="parameter", sinks=[sink])
    feed(clipper, weights, [3.0, 4.0])
    assert (sink[0].threshold, sink[0].coefficient, sink[0].phase) == (inf, 1.0, "warmup")
    feed(clipper, weights, [6.0, 2.0])
    assert sink[1].total_norm == pytest.approx(sqrt(40))
    assert sink[1].threshold == pytest.approx(5.0)
    assert sink[1].coefficient == pytest.approx(sqrt(13 / 40), rel=1e-6)
    assert (sink[1].clipped, sink[1].skipped, sink[1].phase) == (True, False, "active")
    feed(clipper, weights, [None, 5.0])
    assert sink[2].threshold == 4.0
    assert sink[2].coefficient == pytest.approx(0.8, rel=1e-6)
    feed(clipper, weights, [3.0, 4.0])
    assert (sink[3].clipped, sink[3].coefficient) == (False, 1.0)


def test_adagcs_warmup_has_one_factor_for_all_tensors_also_tiny_ones():
    weights = weights_of_one(3)
    left = feed(Clipper(weights, AdaGC(warmup_steps=2)), weights, [3.0, 1e-5, 4.0])
    assert left == pytest.approx([0.6, 2e-6, 0.8], rel=1e-6)


def test_a_zero_gradient_in_adagcs_warmup_stays_and_counts_as_zero():
    weights = weights_of_one(2)
    clipper = Clipper(weights, AdaGC(warmup_steps=2))
    assert feed(clipper, weights, [5.0, 0.0]) == [pytest.approx(1.0, rel=1e-5), 0.0]
    assert clipper.policies["1"].zero_norms == 1
    assert not clipper.last.skipped


@pytest.mark.parametrize("policy", [SkipStep, ZClip], ids=lambda policy: policy.__name__)
def test_one_group_may_be_skipped_while_the_others_go_on(policy):
    weights = weights_of_one(2)
    clipper = Clipper(weights, policy(warmup_steps=3), scope="parameter", response="skip")
    for norm in (1.0, 1.1, 0.9, 1.0):
        feed(clipper, weights, [norm, norm])
    assert feed(clipper, weights, [50.0, 1.0]) == [None, 1.0]
    assert (clipper.last.clipped, clipper.last.skipped, clipper.skipped_steps) == (True, False, 0)
    assert feed(clipper, weights, [5000.0, 50.0]) == [None, None]
    assert (clipper.last.skipped, clipper.last.coefficient, clipper.skipped_steps) == (True, 0.0, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scope", ["group", "parameter"])
def test_every_precision_is_clipped_and_a_second_call_recognised(dtype, scope):
    net = network().to(dtype)
    clipper = clipper_of(net, Fixed(0.05), scope)
    for place, parameter in enumerate(net.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place)).to(dtype)
    clipper.step()
    left = gradients(net)
    for group in members(net, scope).values():
        norm = torch.cat([p.grad.double().flatten() for p in group]).norm().item()
        assert norm == pytest.approx(0.05, rel=1e-4 + torch.finfo(dtype).eps)
    with pytest.warns(UserWarning, match="called again"):
        clipper.step()
    assert equal(gradients(net), left)


def test_sparse_gradients_are_clipped_as_dense_ones():
    lefts = []
    for sparse in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(10, 3, sparse=sparse), nn.Linear(3, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        clipper = Clipper(net, RunningQuantile(50, warmup_steps=2), scope="parameter")
        for step in range(10):
            optimizer.zero_grad()
            net(torch.tensor([1, 4, 1, step])).pow(2).sum().backward()
            clipper.step()
            optimizer.step()
        lefts.append(weights_of(net))
    for one, other in zip(*lefts, strict=True):
        torch.testing.assert_close(one, other)


def test_a_copy_and_a_pickle_of_a_clipper_go_on_alike():
    net = network()
    clipper = Clipper(net, RunningQuantile(50, warmup_steps=2), scope="parameter")
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), clipper, range(4))
    for other_net, other in (copy.deepcopy((net, clipper)), pickle.loads(pickle.dumps((net, clipper)))):  # noqa: S301
        assert other.state_dict() == clipper.state_dict()
        train(other_net, torch.optim.SGD(other_net.parameters(), lr=0.1), other, range(4, 6))
        assert other.state_dict()["steps"] == 6
    assert clipper.state_dict()["steps"] == 4


def test_a_group_that_renames_the_parameters_takes_nothing_from_what_was_learned():
    net, head = network(), nn.Linear(8, 1)
    optimizer = torch.optim.SGD([{"params": list(net.named_parameters())}], lr=0.1)
    clipper = Clipper(optimizer, RunningQuantile(warmup_steps=2), scope="parameter")
    train(net, optimizer, clipper, range(5))
    learned = {name: controller["policy"] for name, controller in clipper.state_dict()["groups"].items()}
    optimizer.add_param_group({"params": [("0.weight", head.weight), ("other", head.bias)]})  # one name is taken
    after = {name: controller["policy"] for name, controller in clipper.state_dict()["groups"].items()}
    assert list(after) == ["group0.0.weight", "0.bias", "2.weight", "2.bias", "group1.0.weight", "other"]
    assert after["group0.0.weight"] == learned["0.weight"]
    assert after["2.bias"] == learned["2.bias"]
    assert after["group1.0.weight"]["learned_norms"] == after["other"]["learned_norms"] == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norms", [(9.0, nan), (nan, 9.0)])
def test_a_step_that_is_not_finite_is_skipped_for_nothing_else(norms):
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in norms]
    clipper = Clipper(weights, Fixed(1.0), scope="parameter", response="skip")
    for weight, norm in zip(weights, norms, strict=True):
        weight.grad = torch.tensor([norm])
    clipper.step()
    assert (clipper.last.skipped, clipper.last.skipped_by) == (True, None)


def test_a_gradient_that_appears_when_a_step_is_computed_again_shares_the_bound_of_the_warm_up():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    clipper = Clipper([first, second], AdaGC())
    first.grad = torch.tensor([100.0])
    clipper.step()
    first.grad, second.grad = torch.tensor([100.0]), torch.tensor([100.0])
    clipper.reclip()
    assert torch.cat([first.grad, second.grad]).norm().item() == pytest.approx(1.0)
