"""A small network whose parameters are clipped in groups, and single weights with a gradient as given."""

import torch
from torch import nn
from torch.nn import functional as F

from autoclip import Clipper
from tests.small_network import batch

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
LAYERS = {"first": "^0", "last": "^2"}
RESPONSES = ["scale", "reciprocal", "skip"]


def backward(net, step):
    net.zero_grad()
    loss = F.mse_loss(net(batch(step)[0]), batch(step)[1])
    loss.backward()
    return loss


def clipper_of(net, policy, scope, **options):
    return Clipper(net, policy, scope=scope, groups=LAYERS if scope == "group" else None, **options)


def members(net, scope):
    """Group's name -> its parameters."""
    named = dict(net.named_parameters())
    if scope == "global":
        return {"all": list(named.values())}
    if scope == "parameter":
        return {name: [parameter] for name, parameter in named.items()}
    return {"first": list(net[0].parameters()), "last": list(net[2].parameters())}


def gradients(net):
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def norm_of(parameters):
    return torch.cat([p.grad.flatten() for p in parameters]).norm().item()


def feed(clipper, weights, norms, loss=None):
    """Give each weight of one element a gradient (None: none), take the step, return what is left."""
    for weight, norm in zip(weights, norms, strict=True):
        weight.grad = None if norm is None else torch.tensor([norm])
    clipper.step(loss=loss)
    return [None if weight.grad is None else weight.grad.item() for weight in weights]


def weights_of_one(count):
    return [nn.Parameter(torch.ones(1)) for _ in range(count)]
