"""A small network, its batches and its training loop, and the policies and helpers of the clipper's tests."""

import torch
from torch import nn
from torch.nn import functional as F

from autoclip import AutoClip, CenterMultiple, Fixed, LossAwareQuantile, NoClip, RunningQuantile
from autoclip.records import Sink

POLICIES = {
    "running quantile": lambda: RunningQuantile(warmup_steps=10),
    "window": lambda: RunningQuantile(90, window=20, warmup_steps=10),
    "loss-aware": LossAwareQuantile,
    "center multiple": lambda: CenterMultiple(warmup_steps=5, window=10),
    "autoclip": AutoClip,
    "fixed": lambda: Fixed(1.0),
    "none": NoClip,
}


class Records(list, Sink):
    """A sink that keeps what it is told."""

    def log(self, record):
        self.append(record)

    def close(self):
        self.clear()


class Kept(Sink):
    """A sink that keeps what it is told, closed or not."""

    def __init__(self):
        self.all, self.notes = [], []

    def log(self, record):
        self.all.append(record)

    def note(self, batch):
        self.notes.append(batch)


def one_weight():
    return nn.Parameter(torch.zeros(1))


def steps(clipper, weight, norms, losses=None):
    """Run the clipper over gradients of one element; return the gradients that it leaves."""
    left = []
    for step, norm in enumerate(norms):
        weight.grad = torch.tensor([norm])
        clipper.step(loss=None if losses is None else losses[step])
        left.append(None if weight.grad is None else weight.grad.item())
    return left


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def batch(step, size=16):
    random = torch.Generator().manual_seed(step)
    x = torch.randn(size, 4, generator=random)
    return x, x.sum(1, keepdim=True) * (100.0 if step % 7 == 5 else 1.0)


def train(net, optimizer, clipper, at):
    for step in at:
        optimizer.zero_grad()
        loss = F.mse_loss(net(batch(step)[0]), batch(step)[1])
        loss.backward()
        clipper.step(loss=loss)
        optimizer.step()


def weights_of(net):
    return [p.detach().clone() for p in net.parameters()]


def equal(first, second):
    """Bit for bit the same, however nested."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second
