"""A policy for each group: which groups there are, what each learns, and their state."""

import json
from math import inf, isnan

import pytest
import torch

from autoclip import AdaGC, Clipper, Fixed, FixedPercentile, RunningQuantile
from tests.grouped import (
    NAMES,
    RESPONSES,
    clipper_of,
    feed,
    weights_of_one,
)
from tests.small_network import equal, network, train, weights_of


def test_every_group_has_a_policy_of_its_own_with_the_prototypes_parameters():
    prototype = RunningQuantile(90, rate=0.2, warmup_steps=2)
    net = network()
    clipper = Clipper(net, prototype, scope="parameter")
    train(net, torch.optim.SGD(net.parameters(), lr=0.01), clipper, range(5))
    assert list(clipper.policies) == NAMES
    assert len({id(policy) for policy in [prototype, *clipper.policies.values()]}) == 5
    assert all(policy.parameters() == prototype.parameters() for policy in clipper.policies.values())
    assert all(policy.learned_norms == 5 for policy in clipper.policies.values())
    assert prototype.learned_norms == 0
    assert len({policy.threshold() for policy in clipper.policies.values()}) == 4
    assert clipper.policy is prototype


def test_globally_the_policy_is_the_one_given():
    policy = Fixed(1.0)
    clipper = Clipper(network(), policy)
    assert clipper.policies == {"all": policy}
    assert isnan(clipper.clip_rate)
    assert isnan(clipper.clip_rates["all"])


def test_thresholds_and_clip_rates_are_told_by_group():
    weights = weights_of_one(2)
    clipper = Clipper({"a": weights[0], "b": weights[1]}, FixedPercentile(100, warmup_steps=1), scope="parameter")
    assert clipper.threshold == {"a": inf, "b": inf}
    feed(clipper, weights, [1.0, 10.0])
    assert clipper.threshold == {"a": 1.0, "b": 10.0}
    for norms in ([2.0, 9.0], [3.0, 11.0], [0.5, 10.0], [2.0, 0.0]):
        feed(clipper, weights, norms)
    assert clipper.clip_rates == {"a": 3 / 4, "b": 1 / 3}
    assert clipper.clip_rate == 3 / 4  # the steps in which any group was clipped
    assert repr(clipper).endswith("mode='norm', scope='parameter')")


def test_a_policy_brings_its_own_scope_and_the_clipper_may_override_it():
    assert Clipper(network(), AdaGC()).scope == "parameter"
    assert Clipper(network(), AdaGC(), scope="global").scope == "global"


def test_state_is_keyed_by_name_not_by_order():
    one, two = weights_of_one(2), weights_of_one(2)
    first = Clipper({"a": one[0], "b": one[1]}, RunningQuantile(warmup_steps=1), scope="parameter")
    feed(first, one, [1.0, 5.0])
    second = Clipper({"b": two[1], "a": two[0]}, RunningQuantile(warmup_steps=1), scope="parameter")
    second.load_state_dict(first.state_dict())
    assert second.threshold == {"a": 1.0, "b": 5.0}


def test_the_state_of_other_groups_is_refused_and_changes_nothing():
    net = network()
    by_parameter = Clipper(net, RunningQuantile(warmup_steps=1), scope="parameter")
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), by_parameter, range(3))
    before = by_parameter.state_dict()
    for other in (Clipper(net), clipper_of(net, None, "group"), Clipper(net[0], scope="parameter")):
        with pytest.raises(ValueError, match=r"other groups than this Clipper's; not in both: "):
            by_parameter.load_state_dict(other.state_dict())
    broken = json.loads(json.dumps(before))
    broken["groups"]["2.bias"]["policy"]["policy"] = "Fixed"
    broken["groups"]["0.weight"]["clipped_steps"] = 77
    with pytest.raises(ValueError, match="Fixed"):
        by_parameter.load_state_dict(broken)
    assert by_parameter.state_dict() == before


def test_a_group_added_to_the_optimizer_gets_a_policy_and_the_others_keep_theirs():
    net = network()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    clipper = Clipper(optimizer, RunningQuantile(warmup_steps=2), scope="group")
    train(net, optimizer, clipper, range(3))
    threshold = clipper.threshold["group0"]
    optimizer.add_param_group({"params": net[2].parameters(), "name": "head"})
    assert list(clipper.state_dict()["groups"]) == ["group0", "head"]
    assert clipper.threshold == {"group0": threshold, "head": inf}
    train(net, optimizer, clipper, range(3, 5))
    assert [policy.learned_norms for policy in clipper.policies.values()] == [5, 2]


def test_a_state_fits_as_soon_as_the_optimizer_has_the_same_groups():
    def start():
        net = network()
        optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
        clipper = Clipper(optimizer, RunningQuantile(warmup_steps=2), scope="group")
        optimizer.add_param_group({"params": net[2].parameters()})
        return net, optimizer, clipper

    first, second = start(), start()
    train(*first, range(3))
    second[2].load_state_dict(first[2].state_dict())
    assert second[2].threshold == first[2].threshold


@pytest.mark.parametrize("scope", ["parameter", "group"])
def test_frozen_parameters_keep_their_policy_as_it_is_until_they_are_thawed(scope):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    clipper = clipper_of(net, RunningQuantile(warmup_steps=2), scope)
    train(net, optimizer, clipper, range(4))
    frozen = [name for name in clipper.policies if name.startswith(("0", "first"))]
    net[0].requires_grad_(False)
    before = {name: clipper.state_dict()["groups"][name] for name in frozen}
    weights = weights_of(net[0])
    train(net, optimizer, clipper, range(4, 7))
    assert {name: clipper.state_dict()["groups"][name] for name in frozen} == before
    assert equal(weights_of(net[0]), weights)
    net[0].requires_grad_(True)
    train(net, optimizer, clipper, range(7, 9))
    assert all(clipper.policies[name].learned_norms == 6 for name in frozen)
    assert not equal(weights_of(net[0]), weights)


@pytest.mark.parametrize("response", RESPONSES)
def test_a_parameter_without_a_gradient_in_a_step_neither_learns_nor_changes(response):
    weights = weights_of_one(3)
    clipper = Clipper(weights, RunningQuantile(warmup_steps=2), scope="parameter", response=response)
    for norms in ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.5, 1.5, 1.5]):
        feed(clipper, weights, norms)
    before = clipper.state_dict()["groups"]["1"]
    assert feed(clipper, weights, [9.0, None, 0.1])[1] is None
    after = clipper.state_dict()["groups"]
    assert after["1"] == before
    assert after["0"] != before
    assert after["2"] != before
    assert set(clipper.layer_norms()) == ({"0", "2"})


def test_gradients_in_one_memory_are_clipped_once():
    weights = weights_of_one(3)
    shared = torch.tensor([8.0])
    weights[0].grad, weights[1].grad, weights[2].grad = shared, shared, torch.tensor([1.0])
    clipper = Clipper(weights, Fixed(2.0), scope="parameter")
    clipper.step()
    assert [weight.grad.item() for weight in weights] == pytest.approx([2.0, 2.0, 1.0], rel=1e-6)
    assert set(clipper.layer_norms()) == {"0", "2"}
