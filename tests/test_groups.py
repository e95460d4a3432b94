"""The groups of a clipper: what is decided for each, and what is taken away from it."""

import pytest
import torch
from torch import nn

from autoclip import Clipper, Fixed, RunningQuantile
from autoclip.clipper.groups import MODULE_EVERY, Groups
from autoclip.gradients import gradients_of, measure
from tests.grouped import LAYERS, backward
from tests.small_network import network


def groups_of(net, policy=None, scope="group", patterns=LAYERS, response="scale"):
    return Groups(net, policy or Fixed(0.5), scope, response, patterns, "auto")


def decided(groups, net, loss=None):
    gradients = gradients_of(groups.parameters)
    measured = groups.measured(gradients, measure(gradients), 2.0)
    return measured, groups.decide(measured.values, measured.all.value, loss)


def test_every_parameter_is_in_one_group_with_a_policy_of_its_own():
    net = network()
    groups = groups_of(net)
    backward(net, 0)
    measured, decisions = decided(groups, net)
    names = list(measured.gradients)
    assert {group: [names[place] for place in own] for group, own in measured.members.items()} == {
        "first": ["0.weight", "0.bias"],
        "last": ["2.weight", "2.bias"],
    }
    assert groups.controllers["first"].policy is not groups.controllers["last"].policy
    assert [one.norm for one in decisions.values()] == pytest.approx(
        [torch.cat([p.grad.flatten() for p in layer.parameters()]).norm().item() for layer in (net[0], net[2])]
    )


def test_deciding_learns_and_deciding_again_as_before_does_not():
    net = network()
    groups = groups_of(net, RunningQuantile(warmup_steps=2), scope="global", patterns=None)
    for step in range(4):
        backward(net, step)
        _, before = decided(groups, net)
    state = groups.state_dict()
    for parameter in net.parameters():
        parameter.grad *= 100
    gradients = gradients_of(groups.parameters)
    norm = measure(gradients).value
    (again,) = groups.judge_again({"all": norm}, norm, before).values()
    assert again.threshold == before["all"].threshold != groups.threshold
    assert again.clipped
    assert groups.state_dict() == state


def test_gradients_are_taken_from_some_groups_or_all():
    net = network()
    groups = groups_of(net)
    backward(net, 0)
    gradients = gradients_of(groups.parameters)
    assert len(groups.remaining(gradients, {"first"})) == 2
    groups.remove_gradients({"first"})
    assert [p.grad is None for p in net.parameters()] == [True, True, False, False]
    groups.remove_gradients()
    assert all(p.grad is None for p in net.parameters())


def test_the_phase_is_that_of_the_groups_that_took_part():
    net = network()
    groups = groups_of(net, RunningQuantile(warmup_steps=2))
    for step in range(3):
        backward(net, step)
        net[2].weight.grad = net[2].bias.grad = None
        _, decisions = decided(groups, net)
    assert groups.phase(decisions.values()) == "active"
    assert groups.phase([]) == "warmup"


def test_patterns_without_scope_group_and_empty_sources_are_refused():
    with pytest.raises(ValueError, match="groups are for scope='group', got scope='global'"):
        groups_of(network(), scope="global")
    with pytest.raises(ValueError, match="holds no parameters"):
        groups_of(nn.Identity(), scope="global", patterns=None)


def test_parameters_that_a_module_gets_later_are_read_within_fifty_steps():
    net = nn.Sequential(nn.Linear(4, 3))
    groups = Groups(net, Fixed(1.0), "global", "scale", None, "auto")
    net.append(nn.Linear(3, 2))
    for _ in range(MODULE_EVERY):
        groups.refresh()
    assert list(groups.parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_state_under_the_compiler_loads_without_it_and_the_other_way_round():
    net = nn.Sequential(nn.Linear(4, 3))
    compiled = torch.compile(net)
    plain, other = (Clipper(one, Fixed(1.0), scope="parameter") for one in (net, compiled))
    assert list(other.policies) == list(plain.policies) == ["0.weight", "0.bias"]
    other.load_state_dict(plain.state_dict())
