"""Mode "agc": the gradient of each unit is held against the weights it changes, at a threshold that a policy sets."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoclip import Clipper, Fixed, FixedPercentile, RunningQuantile, adaptive_grad_clip_
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


def test_convolutions_are_clipped_filter_by_filter():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 1))
    clipper = Clipper(net[0], RunningQuantile(50, warmup_steps=2), mode="agc")
    for step in range(6):
        net.zero_grad()
        random = torch.Generator().manual_seed(step)
        F.mse_loss(net(torch.randn(8, 1, 4, 4, generator=random)), 10 * torch.randn(8, 1, generator=random)).backward()
        threshold = clipper.threshold
        clipper.step()
        weight = net[0].weight
        ratios = weight.grad.flatten(1).norm(dim=1) / weight.detach().flatten(1).norm(dim=1)
        assert ratios.max().item() <= threshold * (1 + 1e-6)


def test_finite_gradients_whose_squares_overflow_are_clipped_and_learned():
    weight = nn.Parameter(torch.ones(2, 2))
    clipper = Clipper([weight], FixedPercentile(100, warmup_steps=1), mode="agc")
    for size, left in ((1e25, 1e25), (1e30, 1e25)):
        weight.grad = torch.full((2, 2), size)
        assert clipper.step().item() == pytest.approx(size, rel=1e-6)
        assert weight.grad.flatten().tolist() == pytest.approx([left] * 4, rel=1e-6)
    assert clipper.policy.nonfinite_norms == 0


@pytest.mark.parametrize("scope", ["global", "parameter"])
@pytest.mark.parametrize(
    "bad", [torch.eye(2).to_sparse(), torch.eye(2, dtype=torch.complex64)], ids=["sparse", "complex"]
)
def test_sparse_and_complex_gradients_are_refused_and_nothing_is_learned(bad, scope):
    plain, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2, dtype=bad.dtype))
    clipper = Clipper({"plain": plain, "other": other}, Fixed(0.1), mode="agc", scope=scope)
    plain.grad, other.grad = torch.full((2,), 9.0), bad
    before = clipper.state_dict()
    with pytest.raises(TypeError, match=r"needs dense, real gradients .*, got torch.* for parameter 'other'"):
        clipper.step()
    assert clipper.state_dict() == before
    assert plain.grad.tolist() == [9.0, 9.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scope", ["global", "parameter"])
def test_a_second_call_is_recognised_in_every_precision(dtype, scope):
    weights = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((5, 40), (40,))]
    clipper = Clipper(weights, Fixed(0.01), mode="agc", scope=scope)
    for place, weight in enumerate(weights):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(place)).to(dtype)
    clipper.step()
    left = [weight.grad.clone() for weight in weights]
    with pytest.warns(UserWarning, match="called again"):
        clipper.step()
    assert equal([weight.grad for weight in weights], left)
    assert clipper.state_dict()["steps"] == 1
