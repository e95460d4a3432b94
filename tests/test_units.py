from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoclip import CenterMultiple, Clipper, Fixed, adaptive_grad_clip_
from autoclip.gradients import limit_units_, measure_weighted
from tests.grouped import backward, clipper_of, gradients, members
from tests.properties import pinned
from tests.references import scaled_adam_norm
from tests.small_network import Records, network

PINNED = pinned(100)
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def parameter(weight, gradient, dtype=torch.float32):
    made = nn.Parameter(torch.as_tensor(weight, dtype=dtype))
    made.grad = torch.as_tensor(gradient, dtype=dtype)
    return made


def random(shape, seed, dtype=torch.float32, scale=1.0):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def units(values):
    return list(values) if values.ndim > 1 else [values]


def ratios(weight, gradient, eps=1e-3):
    return [
        (g.double().norm() / w.double().norm().clamp(min=eps)).item()
        for w, g in zip(units(weight), units(gradient), strict=True)
    ]


def clipped_one_by_one(weight, gradient, factor, eps=1e-3):
    """The published loop over units, in float64, without rounding to the gradient's precision."""
    after = gradient.double().clone()
    for w, g in zip(units(weight.double()), units(after), strict=True):
        limit = factor * max(w.norm().item(), eps)
        if g.norm().item() >= limit:
            g.mul_(limit / max(g.norm().item(), 1e-6))
    return after


def test_a_vector_is_one_unit_and_so_is_each_row_of_a_matrix():
    weight = parameter([3.0, 4.0], [7.0, 24.0])
    assert adaptive_grad_clip_([weight], 0.5).item() == 5.0
    assert weight.grad.tolist() == pytest.approx([0.7, 2.4], rel=1e-6)
    weight = parameter([[3.0, 4.0], [9.0, 40.0]], [[7.0, 24.0], [5.0, 12.0]])
    assert adaptive_grad_clip_([weight], 0.5).item() == 5.0
    assert weight.grad[0].tolist() == pytest.approx([0.7, 2.4], rel=1e-6)
    assert weight.grad[1].tolist() == [5.0, 12.0]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (4, 3, 2, 2), (2, 3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("factor", [0.01, 0.3, 3.0])
def test_units_of_every_shape_and_dtype_are_clipped_as_by_a_loop(shape, dtype, factor):
    weight, gradient = random(shape, 0, dtype), random(shape, 1, dtype)
    made = parameter(weight.clone(), gradient.clone(), dtype)
    largest = adaptive_grad_clip_([made], factor)
    assert largest.item() == pytest.approx(max(ratios(weight, gradient)), rel=1e-6)
    expected = clipped_one_by_one(weight, gradient, factor).to(dtype)
    torch.testing.assert_close(made.grad, expected, rtol=ROUNDING[dtype], atol=1e-7)
    assert made.grad.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(101,), (1, 101)])
def test_half_precision_is_multiplied_in_float32_and_rounded_once(dtype, shape):
    gradient = torch.linspace(-60000, 60000, 101).reshape(shape).to(dtype)
    made = parameter(torch.ones(shape), gradient.clone(), dtype)
    expected = gradient.float() * (1e-3 * made.detach().float().norm() / gradient.float().norm())
    adaptive_grad_clip_([made], 1e-3)
    assert torch.equal(made.grad, expected.to(dtype))


def test_a_convolutions_filters_are_its_units():
    conv = nn.Conv2d(3, 4, 2)
    with torch.no_grad():
        conv.weight[2] = 0
    conv.weight.grad = random(conv.weight.shape, 3)
    before = conv.weight.grad.clone()
    adaptive_grad_clip_([conv.weight], 0.1)
    for filter_before, filter_after, weight in zip(before, conv.weight.grad, conv.weight.detach(), strict=True):
        limit = 0.1 * max(weight.norm().item(), 1e-3)
        assert filter_after.norm().item() == pytest.approx(limit, rel=1e-6)
        torch.testing.assert_close(filter_after / filter_after.norm(), filter_before / filter_before.norm())


def test_a_weight_that_starts_at_zero_still_moves():
    weight = parameter(torch.zeros(2, 3), torch.ones(2, 3))
    adaptive_grad_clip_([weight], 0.01)
    assert weight.grad.norm(dim=1).tolist() == pytest.approx([1e-5, 1e-5], rel=1e-6)
    torch.optim.SGD([weight], lr=1.0).step()
    assert bool((weight != 0).all())


def test_every_source_is_taken_and_parameters_without_gradient_are_left_out():
    net = network()
    assert adaptive_grad_clip_(net).item() == 0.0
    net[0].weight.grad = torch.ones_like(net[0].weight)
    assert adaptive_grad_clip_(torch.optim.SGD(net.parameters(), lr=0.1), 0.01).item() > 0.01
    assert adaptive_grad_clip_(net.named_parameters(), 0.01).item() == pytest.approx(0.01, rel=1e-6)
    assert net[0].bias.grad is None


@pytest.mark.parametrize("bad", [nan, inf])
def test_what_is_not_finite_makes_the_measure_so_and_its_unit_only(bad):
    weight = parameter(torch.ones(3, 2), [[4.0, 3.0], [bad, 1.0], [0.0, 0.0]])
    other = parameter([1.0], [9.0])
    assert not adaptive_grad_clip_([other, weight], 0.5).isfinite()
    assert weight.grad[0].norm().item() == pytest.approx(0.5 * 2**0.5, rel=1e-6)
    assert weight.grad[1].isnan().any() or weight.grad[1].isinf().any()
    assert weight.grad[2].tolist() == [0.0, 0.0]
    assert other.grad.item() == 0.5


def test_finite_gradients_never_measure_as_infinite():
    weights = [parameter(torch.ones(2, 2), torch.full((2, 2), 1e30)), parameter([2.0], [1.0])]
    assert adaptive_grad_clip_(weights, 0.1).item() == pytest.approx(1e30, rel=1e-6)
    assert weights[0].grad.norm(dim=1).tolist() == pytest.approx([0.1 * 2**0.5] * 2, rel=1e-6)
    assert weights[1].grad.item() == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e-9, 1e-15])
def test_a_tiny_limit_is_met_and_not_undercut(scale):
    weight = parameter([[3.0, 4.0]], torch.tensor([[7.0, 24.0]]) * scale)
    limit_units_([weight.grad], [weight], 0.5 * scale)
    assert weight.grad[0].tolist() == pytest.approx([0.7 * scale, 2.4 * scale], rel=1e-6, abs=0)


def test_an_expanded_gradient_gets_memory_of_its_own():
    source = torch.tensor([3.0, 4.0])
    weight = nn.Parameter(torch.ones(3, 2))
    weight.grad = source.expand(3, 2)
    adaptive_grad_clip_([weight], 0.5)
    torch.testing.assert_close(weight.grad.norm(dim=1), torch.full((3,), 0.5 * 2**0.5))
    assert source.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("gradient", [torch.tensor([3 + 4j]), torch.eye(2).to_sparse()], ids=str)
def test_sparse_and_complex_gradients_are_refused_and_nothing_is_changed(gradient):
    weight, other = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype)), parameter([1.0], [9.0])
    weight.grad = gradient
    with pytest.raises(TypeError, match=r"unit-wise clipping needs dense, real gradients .*, got torch.* 'bad'"):
        adaptive_grad_clip_({"fine": other, "bad": weight}, 0.1)
    assert other.grad.item() == 9.0


@pytest.mark.parametrize(("name", "value"), [("clip_factor", 0), ("clip_factor", nan), ("eps", 0.0), ("eps", -1)])
def test_a_factor_or_floor_that_is_not_above_zero_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be > 0, got {value}"):
        adaptive_grad_clip_([parameter([1.0], [1.0])], **{name: value})


@PINNED
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    factor=st.floats(1e-4, 10),
    scale=st.floats(1e-8, 1e8),
    dtype=st.sampled_from(list(ROUNDING)[:2]),
)
def test_no_unit_is_left_above_the_factor(rows, columns, seed, factor, scale, dtype):
    weight = random((rows, columns), seed, dtype)
    weight[seed % rows] *= 1e-5
    spread = torch.logspace(-3, 1, rows, dtype=torch.float64).unsqueeze(1)
    gradient = (random((rows, columns), seed + 1, torch.float64) * spread * scale).to(dtype)
    made = parameter(weight, gradient.clone(), dtype)
    adaptive_grad_clip_([made], factor)
    before, after = ratios(weight, gradient), ratios(weight, made.grad)
    assert max(after) <= factor * (1 + ROUNDING[dtype])
    for row in range(rows):
        if before[row] < factor * (1 - 1e-6):
            assert torch.equal(made.grad[row], gradient[row])
        else:
            assert after[row] == pytest.approx(min(factor, before[row]), rel=ROUNDING[dtype], abs=0)
            cosine = nn.functional.cosine_similarity(made.grad[row].double(), gradient[row].double(), dim=0)
            assert cosine.item() == pytest.approx(1, abs=1e-6)


def arrays(parameters):
    both = [(one.detach().double().numpy(), one.grad.double().numpy()) for one in parameters]
    return [weight for weight, _ in both], [gradient for _, gradient in both]


@pytest.mark.parametrize("scope", ["global", "group", "parameter"])
def test_the_weighted_norm_is_that_of_scaled_adam_and_its_threshold_scales_as_one_factor(scope):
    net, sink = network(), Records()
    with torch.no_grad():
        net[0].bias.zero_()  # counts with 1e-5
    clipper = clipper_of(net, CenterMultiple(window=4, warmup_steps=2), scope, mode="param_rms", sinks=[sink])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    clipped = 0
    for step in range(12):
        backward(net, step)
        if step == 8:
            net[0].weight.grad *= 50
        thresholds = clipper.threshold if scope != "global" else {"all": clipper.threshold}
        before, groups = dict(zip(net.parameters(), gradients(net), strict=True)), members(net, scope)
        own = {name: scaled_adam_norm(*arrays(group)) for name, group in groups.items()}
        total = clipper.step()
        assert float(total) == pytest.approx(sum(norm**2 for norm in own.values()) ** 0.5, rel=1e-6)
        for name, group in groups.items():
            factor = min(1.0, thresholds[name] / own[name])
            clipped += factor < 1
            for one in group:
                torch.testing.assert_close(one.grad, factor * before[one], rtol=1e-3, atol=1e-9)
        left = scaled_adam_norm(*arrays(net.parameters()))
        assert sink[-1].coefficient == pytest.approx(left / float(total), rel=1e-5)
        optimizer.step()
    assert clipped >= 1


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_weighted_norms_neither_overflow_nor_underflow(scale, dtype):
    size = scale if dtype != torch.float16 else max(min(scale, 1e4), 1e-4)
    weights = [
        parameter([3.0, 4.0], [size, size], dtype),
        parameter(torch.zeros(3, 2), torch.full((3, 2), size), dtype),
    ]
    expected = scaled_adam_norm(*arrays(weights))
    for scope in ("global", "parameter"):
        clipper = Clipper(weights, Fixed(expected / 2), mode="param_rms", scope=scope)
        assert float(clipper.step()) == pytest.approx(expected, rel=1e-3)
        assert weights[0].grad.tolist() == pytest.approx([size / 2] * 2, rel=1e-3)
        for one in weights:
            one.grad = torch.full_like(one, size)
    empty = parameter(torch.zeros(0), torch.zeros(0))
    assert measure_weighted({"a": empty.grad}, {"a": empty}).value == measure_weighted({}, {}).value == 0.0
