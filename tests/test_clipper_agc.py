"""Mode "agc": the gradient of each unit is held against the weights it changes, at a threshold that a policy sets."""

import pytest
import torch

from autoclip import Fixed, FixedPercentile, adaptive_grad_clip_
from tests.grouped import backward, clipper_of, gradients, members
from tests.small_network import Records, equal, network


@pytest.mark.parametrize("scope", ["global", "group", "parameter"])
@pytest.mark.parametrize("factor", [0.01, 0.5])
def test_a_constant_clips_as_the_function_does_bit_for_bit(scope, factor):
    ours, theirs, sink = network(), network(), Records()
    clipper = clipper_of(ours, Fixed(factor), scope, mode="agc", sinks=[sink])
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05) for net in (ours, theirs)]
    for step in range(8):
        backward(ours, step)
        backward(theirs, step)
        largest = adaptive_grad_clip_(theirs, factor)
        assert torch.equal(clipper.step(), largest)
        assert equal(gradients(ours), gradients(theirs))
        assert (sink[-1].threshold, sink[-1].clipped) == (factor, largest.item() > factor)
        assert sink[-1].coefficient == pytest.approx(min(1.0, factor / largest.item()), rel=1e-6)
        for optimizer in optimizers:
            optimizer.step()


def test_a_policy_learns_the_largest_ratio_of_each_group():
    net = network()
    clipper = clipper_of(net, FixedPercentile(100, warmup_steps=1), "group", mode="agc")
    backward(net, 0)
    expected = {
        name: max(
            (unit_g.norm() / unit_w.norm().clamp(min=1e-3)).item()
            for p in group
            for unit_w, unit_g in (zip(p.detach(), p.grad, strict=True) if p.ndim > 1 else [(p.detach(), p.grad)])
        )
        for name, group in members(net, "group").items()
    }
    total = clipper.step()
    assert clipper.threshold == pytest.approx(expected, rel=1e-6)
    assert total.item() == pytest.approx(max(expected.values()), rel=1e-6)
    assert set(clipper.layer_norms()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
