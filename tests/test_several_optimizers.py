"""Muon for the matrices beside AdamW for the rest: a clipper each, or one over both."""

import copy
from math import nan

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.nn.utils import get_total_norm

import autoclip
from tests.small_network import Records, batch, network

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")

STEPS = 40


def training():
    """The network, and its two optimizers."""
    net = network()
    matrices = [(name, one) for name, one in net.named_parameters() if one.ndim == 2]
    rest = [(name, one) for name, one in net.named_parameters() if one.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=1e-2, adjust_lr_fn="match_rms_adamw")
    return net, (muon, torch.optim.AdamW(rest, lr=1e-2))


def policy():
    return autoclip.RunningQuantile(percentile=50, warmup_steps=5)


def backward(net, optimizers, step):
    for optimizer in optimizers:
        optimizer.zero_grad()
    x, y = batch(step)
    loss = mse_loss(net(x), y)
    loss.backward()
    return loss.detach()


def norm_of(optimizer):
    return get_total_norm([one.grad for one in optimizer.param_groups[0]["params"]]).item()


def everything(optimizer):
    """Copies of the parameters of an optimizer, and of its state."""
    return copy.deepcopy((optimizer.param_groups[0]["params"], optimizer.state_dict()["state"]))


def same(one, other):
    (parameters, state), (others, other_state) = one, other
    pairs = [*zip(parameters, others, strict=True)]
    pairs += [(value, other_state[key][name]) for key, values in state.items() for name, value in values.items()]
    return state.keys() == other_state.keys() and all(torch.equal(a, b) for a, b in pairs)


def test_a_clipper_each_holds_each_part_within_a_threshold_of_its_own():
    net, optimizers = training()
    sinks = [Records() for _ in optimizers]
    for optimizer, sink in zip(optimizers, sinks, strict=True):
        autoclip.attach(optimizer, policy(), sinks=[sink])
    for step in range(STEPS):
        loss = backward(net, optimizers, step)
        norms = [norm_of(optimizer) for optimizer in optimizers]
        for optimizer, sink, norm in zip(optimizers, sinks, norms, strict=True):
            optimizer.step(lambda loss=loss: loss)
            assert sink[-1].total_norm == pytest.approx(norm, rel=1e-6)
            assert norm_of(optimizer) <= sink[-1].threshold * (1 + 1e-6)
    of_muon, of_adamw = sinks
    assert all(10 <= sum(record.clipped for record in sink) <= 30 for sink in sinks)
    assert all(one.threshold != other.threshold for one, other in zip(of_muon[1:], of_adamw[1:], strict=True))


def test_one_clipper_over_both_holds_all_gradients_within_one_threshold():
    net, optimizers = training()
    records = Records()
    clipper = autoclip.Clipper(net, policy(), sinks=[records])
    for step in range(STEPS):
        loss = backward(net, optimizers, step)
        clipper.step(loss=loss)
        assert get_total_norm([one.grad for one in net.parameters()]).item() <= records[-1].threshold * (1 + 1e-6)
        for optimizer in optimizers:
            optimizer.step()
    assert 10 <= sum(record.clipped for record in records) <= 30


@pytest.mark.filterwarnings("ignore:non-finite gradient norm:UserWarning")
@pytest.mark.parametrize("broken", [0, 1], ids=["muon", "adamw"])
@pytest.mark.parametrize("each", [True, False], ids=["a clipper each", "one over both"])
def test_a_skipped_step_is_left_out_by_the_optimizers_of_that_clipper(each, broken):
    net, optimizers = training()
    attached = [autoclip.attach(optimizer, policy()) for optimizer in optimizers] if each else []
    clipper = autoclip.Clipper(net, policy())
    for step in range(6):
        backward(net, optimizers, step)
        before = [everything(optimizer) for optimizer in optimizers]
        if step == 5:
            optimizers[broken].param_groups[0]["params"][0].grad[0] = nan
        if not each:
            clipper.step()
        for optimizer in optimizers:
            optimizer.step()
    stayed = [same(everything(one), was) for one, was in zip(optimizers, before, strict=True)]
    assert stayed == ([broken == 0, broken == 1] if each else [True, True])
    assert [one.last.skipped for one in attached or [clipper]] == ([broken == 0, broken == 1] if each else [True])
