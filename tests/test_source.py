import pytest
import torch
from torch import nn

from autoclip.gradients import gradients_of, named_parameters
from autoclip.gradients.source import are_apart


def parameter(gradient):
    """A parameter of zeros that holds this gradient."""
    zeros = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
    zeros.grad = gradient
    return zeros


def model():
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def same(found, expected):
    return list(found) == list(expected) and all(found[name] is expected[name] for name in found)


NET = model()
OWN, BY_PLACE = ["0.weight", "0.bias", "1.weight", "1.bias"], ["0", "1", "2", "3"]
GROUPS = [{"params": list(NET[0].parameters()), "lr": 0.1}, {"params": NET[1].weight}, {"params": [NET[1].bias]}]
BY_GROUP = ["group0.0", "group0.1", "group1.0", "group2.0"]
SOURCES = {
    "module": (NET, OWN),
    "named pairs": (NET.named_parameters(), OWN),
    "optimizer of named parameters": (torch.optim.SGD(NET.named_parameters(), lr=0.1), OWN),
    "list": (list(NET.parameters()), BY_PLACE),
    "tuple": (tuple(NET.parameters()), BY_PLACE),
    "generator": (NET.parameters(), BY_PLACE),
    "a parameter twice": ([*NET.parameters(), NET[0].weight], BY_PLACE),
    "groups": (GROUPS, BY_GROUP),
    "optimizer": (torch.optim.SGD(GROUPS, lr=0.1), BY_GROUP),
}


@pytest.mark.parametrize(("source", "names"), SOURCES.values(), ids=SOURCES)
def test_a_source_gives_its_parameters_with_names(source, names):
    assert same(named_parameters(source), dict(zip(names, NET.parameters(), strict=True)))


def test_a_pair_and_a_single_tensor_are_parameters():
    weight, bias = nn.Linear(2, 1).parameters()
    assert same(named_parameters((weight, bias)), {"0": weight, "1": bias})
    assert same(named_parameters(weight), {"0": weight})
    assert same(named_parameters([("a", weight), ("b", weight)]), {"a": weight})
    assert set(named_parameters({weight, bias})) == {"0", "1"}


def test_tied_parameters_of_a_module_count_once():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    assert list(named_parameters(net)) == ["0.weight", "0.bias", "1.bias"]


def test_two_parameters_of_one_name_are_an_error():
    weight, bias = nn.Linear(2, 1).parameters()
    with pytest.raises(ValueError, match="two different parameters are named 'w'"):
        named_parameters([("w", weight), ("w", bias)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3.0, r"expected a module, parameters, parameter groups or an optimizer, got a float"),
        (None, "expected a module, parameters, parameter groups or an optimizer, got a NoneType"),
        ([1.0], r"expected a parameter at '0', got a float"),
        ("weights", "expected a parameter at '0', got a str"),
        ({"weight": 1}, "expected a parameter at 'weight', got a int"),
        ([("weight", None)], "expected a parameter at 'weight', got a NoneType"),
        ([{"lr": 0.1, "betas": 1}], "parameter group 0 has no 'params', only lr, betas"),
    ],
)
def test_what_is_no_parameter_is_refused_with_its_place(source, message):
    with pytest.raises(TypeError, match=message):
        named_parameters(source)


def test_the_same_memory_counts_once_under_its_first_position():
    shared = torch.ones(4)
    weights = [parameter(shared), parameter(shared.view(2, 2)), parameter(torch.ones(4)), parameter(shared)]
    assert list(gradients_of(dict(enumerate(weights)))) == [0, 2]


def test_neighbours_in_one_buffer_are_different_gradients():
    weights = [parameter(part) for part in torch.arange(6.0).split(2)]
    assert list(gradients_of(dict(enumerate(weights)))) == [0, 1, 2]


def test_memory_that_holds_more_than_another_gradient_is_not_dropped():
    flat = torch.ones(9)
    found = gradients_of({"part": parameter(flat[:4]), "whole": parameter(flat)})
    assert sum(gradient.numel() for gradient in found.values()) >= 9


def test_sparse_gradients_are_told_apart():
    first, second = nn.Embedding(4, 2, sparse=True), nn.Embedding(4, 2, sparse=True)
    (first(torch.tensor([1])).sum() + second(torch.tensor([1, 3])).sum()).backward()
    assert list(gradients_of(dict(enumerate([first.weight, second.weight])))) == [0, 1]


def test_gradients_come_with_the_names_of_those_that_exist():
    weights = {"a": parameter(torch.ones(2)), "frozen": nn.Parameter(torch.zeros(2)), "b": parameter(torch.ones(3))}
    weights |= {"empty": parameter(torch.zeros(3, 0))}
    gradients = gradients_of(weights)
    assert list(gradients) == ["a", "b"]
    assert all(gradient is weights[name].grad for name, gradient in gradients.items())


@pytest.mark.parametrize("what", ["none", "empty", "shared", "sparse"])
def test_what_takes_a_closer_look_is_not_known_to_be_apart(what):
    weights = [parameter(torch.ones(4)), parameter(torch.ones(2))]
    if what == "none":
        weights = [nn.Parameter(torch.zeros(2))]
    elif what == "empty":
        weights.append(parameter(torch.zeros(0)))
    elif what == "shared":
        weights.append(parameter(weights[0].grad.view(2, 2)))
    else:
        weights[1].grad = torch.ones(2).to_sparse()
    assert not are_apart([weight.grad for weight in weights if weight.grad is not None])
