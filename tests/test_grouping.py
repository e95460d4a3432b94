import re

import pytest
import torch
from torch import nn

from autoclip.gradients import group_by_parameter, kept_source, named_parameters
from tests.small_network import network


def groups_of(source, scope, patterns=None):
    return group_by_parameter(source, named_parameters(source), scope, patterns)


def test_globally_all_parameters_are_one_group_and_by_parameter_each_is_one():
    net = network()
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert groups_of(net, "global") == dict.fromkeys(names, "all")
    assert groups_of(net, "parameter") == {name: name for name in names}


def test_an_optimizers_groups_are_called_by_name_or_position():
    net = network()
    first, second = net[0], net[2]
    groups = [{"params": first.parameters(), "name": "body"}, {"params": [second.weight]}, {"params": second.bias}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert groups_of(optimizer, "group") == {
        "group0.0": "body",
        "group0.1": "body",
        "group1.0": "group1",
        "group2.0": "group2",
    }


def test_an_optimizer_of_named_parameters_keeps_their_names():
    net = network()
    groups = [{"params": list(net[0].named_parameters())}, {"params": list(net[2].named_parameters("head"))}]
    assert groups_of(torch.optim.SGD(groups, lr=0.1), "group") == {
        "weight": "group0",
        "bias": "group0",
        "head.weight": "group1",
        "head.bias": "group1",
    }


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_parameter_groups_may_be_given_in_any_iterable_with_generators_inside(kind):
    net = network()
    source = kept_source(kind([{"params": net[0].parameters(), "name": "body"}, {"params": net[2].parameters()}]))
    for _ in range(2):
        assert list(groups_of(source, "group").values()) == ["body", "body", "group1", "group1"]


def test_a_source_that_can_be_read_again_is_kept_as_it_is():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert kept_source(net) is net
    assert kept_source(optimizer) is optimizer
    pairs = kept_source(net.named_parameters())
    assert [name for name, _ in pairs] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_the_first_pattern_that_fits_counts():
    net = network()
    assert groups_of(net, "group", {"biases": "bias$", "first": "^0"}) == {
        "0.weight": "first",
        "0.bias": "biases",
        "2.weight": "rest",
        "2.bias": "biases",
    }
    assert groups_of(net, "group", {"all of them": ""}) == dict.fromkeys(named_parameters(net), "all of them")
    assert groups_of(net, "group", {"w": re.compile("WEIGHT", re.IGNORECASE)})["2.weight"] == "w"


def test_patterns_go_before_the_groups_of_an_optimizer():
    net = network()
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1)
    assert set(groups_of(optimizer, "group", {"b": "bias"}).values()) == {"b", "rest"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"a": "("}, r"groups: '\(' of 'a' is no regular expression: "),
        ({"a": 3}, "groups: 3 of 'a' is no regular expression: "),
        (
            {"a": "conv"},
            "groups: 'conv' of 'a' fits no parameter that is left; there are 0.weight, 0.bias, 2.weight, 2",
        ),
        ({"a": "bias", "b": "0.bias"}, "groups: '0.bias' of 'b' fits no parameter that is left"),
    ],
)
def test_a_bad_pattern_is_refused_with_its_groups_name(patterns, message):
    with pytest.raises(ValueError, match=message):
        groups_of(network(), "group", patterns)


def test_many_names_are_cut_short():
    with pytest.raises(ValueError, match=r"there are 0, 1, 2, 3, 4, \.\.\.$"):
        groups_of([nn.Parameter(torch.zeros(1)) for _ in range(7)], "group", {"a": "x"})


@pytest.mark.parametrize("source", [network(), list(network().parameters()), list(network().named_parameters())])
def test_a_source_without_groups_is_refused(source):
    with pytest.raises(ValueError, match=r"scope='group' needs an optimizer or parameter groups .*groups=\{name"):
        groups_of(source, "group")


def test_two_groups_of_one_name_are_refused():
    net = network()
    groups = [{"params": net[0].parameters(), "name": "group1"}, {"params": net[2].parameters()}]
    with pytest.raises(ValueError, match="two parameter groups are called 'group1'"):
        groups_of(kept_source(groups), "group")
