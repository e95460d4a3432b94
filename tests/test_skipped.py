"""A skipped step changes nothing, under optimizers too that take a missing gradient for zeros."""

import copy
from collections import defaultdict

import pytest
import torch

from autoclip import Fixed, attach
from tests.small_network import network


class ZeroFilling(torch.optim.Optimizer):
    """As variants of Muon: a missing gradient counts as zeros, so that all ranks communicate; momentum moves on."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr, "step": 0})
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.count += 1
        self.state["all"]["steps"] = self.count
        for group in self.param_groups:
            group["step"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                state = self.state[parameter]
                state.setdefault("momentum", torch.zeros_like(parameter)).mul_(0.9).add_(parameter.grad)
                parameter.sub_(group["lr"] * state["momentum"])
        return loss


class Refusing(ZeroFilling):
    """It refuses a step without gradients."""

    def step(self, closure=None):
        if all(parameter.grad is None for group in self.param_groups for parameter in group["params"]):
            raise RuntimeError("parameter size is 0")
        return super().step(closure)


def everything(net, optimizer):
    state = copy.deepcopy(optimizer.state_dict())
    return [parameter.detach().clone() for parameter in net.parameters()], state, optimizer.count


def assert_same(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    assert str(first[1]) == str(second[1])
    assert first[2] == second[2]


def backward(net, scale=1.0):
    (scale * net(torch.ones(4, 4)).square().mean()).backward()


@pytest.mark.filterwarnings("ignore:non-finite")
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("scale", [float("nan"), 1e9])
@pytest.mark.parametrize("by_rule", [False, True])
@pytest.mark.parametrize("cls", [ZeroFilling, Refusing])
def test_a_skipped_step_has_no_effect(cls, by_rule, scale, before):
    net = network()
    optimizer = cls(net.parameters())
    clipper = attach(optimizer, skip=Fixed(1e3)) if by_rule else attach(optimizer, Fixed(1e3), response="skip")
    for _ in range(before):
        backward(net)
        optimizer.step()
        optimizer.zero_grad()
    kept = everything(net, optimizer)
    backward(net, scale)
    optimizer.step()
    assert clipper.last.skipped
    assert_same(everything(net, optimizer), kept)
    assert all(parameter.grad is None for parameter in net.parameters())
    backward(net)
    optimizer.step()
    assert not clipper.last.skipped
    assert optimizer.count == before + 1


def test_a_group_that_is_skipped_alone_is_put_back_alone():
    net = network()
    optimizer = ZeroFilling(net.parameters())
    clipper = attach(optimizer, Fixed(1e3), scope="parameter", response="skip")
    for _ in range(2):
        backward(net)
        optimizer.step()
        optimizer.zero_grad()
    first, *others = net.parameters()
    values, momentum = [one.detach().clone() for one in (first, *others)], optimizer.state[first]["momentum"].clone()
    backward(net)
    first.grad.mul_(1e9)
    optimizer.step()
    assert clipper.last.clipped
    assert torch.equal(first, values[0])
    assert torch.equal(optimizer.state[first]["momentum"], momentum)
    assert all(not torch.equal(one, value) for one, value in zip(others, values[1:], strict=True))
    assert optimizer.count == 3


def test_a_closure_is_told_of_and_nothing_is_put_back_in_its_middle():
    net = network()
    optimizer = ZeroFilling(net.parameters())
    attach(optimizer, Fixed(1e3), response="skip")

    def closure():
        optimizer.zero_grad()
        backward(net, 1e9)
        return 1.0

    with pytest.warns(UserWarning, match="ZeroFilling may have changed parameters all the same"):
        optimizer.step(closure)


def test_an_optimizer_of_torch_pays_nothing():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    clipper = attach(optimizer, Fixed(1e3), response="skip")
    backward(net, 1e9)
    optimizer.step()
    assert clipper.last.skipped
    assert optimizer.state == defaultdict(dict)
