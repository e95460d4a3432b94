"""The drop-in functions beside torch's: bit for bit equal where torch is right, right where it is not."""

from math import inf, isnan, nan, sqrt

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_
from torch.nn.utils import clip_grad_value_ as torch_clip_grad_value_

import autoclip
from autoclip import clip_grad_norm_, clip_grad_value_
from tests.properties import pinned
from tests.references import total_norm

torch.set_num_threads(1)
PINNED = pinned(200)

shapes = st.lists(st.sampled_from([(), (1,), (7,), (3, 4), (2, 3, 5), (64, 3)]), min_size=1, max_size=4)
seeds = st.integers(0, 2**31)
norm_types = st.sampled_from([2.0, 1.0, inf, 3.0])


def parameter(gradient):
    """A parameter of zeros that holds this gradient."""
    zeros = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
    zeros.grad = gradient
    return zeros


def random_gradients(shapes, seed, dtype, scale):
    random = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=random, dtype=torch.float64) * scale).to(dtype) for shape in shapes]


def twins(gradients):
    """The same gradients twice: for torch, and for us."""
    return [parameter(g.clone()) for g in gradients], [parameter(g.clone()) for g in gradients]


def norm_of(parameters, order=2.0):
    """Exact norm of what the parameters hold now."""
    return total_norm((value for p in parameters for value in p.grad.double().flatten().tolist()), order)


def bits(tensor):
    return tensor.view(torch.int64 if tensor.dtype == torch.float64 else torch.int32)


@PINNED
@given(shapes, seeds, norm_types, st.sampled_from([torch.float32, torch.float64]), st.floats(-2, 6), st.floats(-3, 3))
@pytest.mark.parametrize("through", ["function", "clipper"])
def test_torch_is_reproduced_bit_for_bit(through, shapes, seed, norm_type, dtype, log_norm, log_ratio):
    gradients = random_gradients(shapes, seed, dtype, 10**log_norm)
    threshold = max(1e-3, total_norm([v for g in gradients for v in g.flatten().tolist()], norm_type) * 10**log_ratio)
    theirs, ours = twins(gradients)
    expected = torch_clip_grad_norm_(theirs, threshold, norm_type)
    # Just below the threshold torch shrinks too: by its 1e-6, or by the rounding of a reciprocal.
    assume(not threshold * (1 - 1e-6) - 1e-5 < float(expected) <= threshold)
    if through == "function":
        actual = clip_grad_norm_(ours, threshold, norm_type)
    else:
        actual = autoclip.Clipper(ours, autoclip.Fixed(threshold), norm_type=norm_type).step()
    assert actual.dtype == expected.dtype
    assert torch.equal(bits(actual), bits(expected))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


@PINNED
@given(shapes, seeds, norm_types, st.floats(-25, 30), st.floats(-6, -1e-3))
def test_the_norm_afterwards_is_at_most_the_threshold(shapes, seed, norm_type, log_norm, log_ratio):
    gradients = random_gradients(shapes, seed, torch.float32, 10**log_norm)
    before, clipped = twins(gradients)
    threshold = norm_of(before, norm_type) * 10**log_ratio
    clip_grad_norm_(clipped, threshold, norm_type)
    after = norm_of(clipped, norm_type)
    # torch's float32 roots other than the square root are right to 1e-6 only.
    assert after <= threshold * (1 + (1e-6 if norm_type in (1.0, 2.0, inf) else 1e-5))
    assert after >= threshold * (0.998 if threshold < 1e-3 else 0.999 - 1e-6 / threshold)
    factors = torch.cat([(a.grad.double() / b.grad.double()).flatten() for a, b in zip(clipped, before, strict=True)])
    assert float(factors.max() / factors.min()) == pytest.approx(1, rel=1e-6)


@PINNED
@given(shapes, seeds, norm_types, st.floats(-40, 30), st.floats(1, 10))
def test_at_or_below_the_threshold_not_a_bit_changes(shapes, seed, norm_type, log_norm, ratio):
    before, untouched = twins(random_gradients(shapes, seed, torch.float32, 10**log_norm))
    norm = clip_grad_norm_(untouched, inf, norm_type)
    clip_grad_norm_(untouched, float(norm) * ratio, norm_type)
    assert all(torch.equal(bits(a.grad), bits(b.grad)) for a, b in zip(untouched, before, strict=True))


@pytest.mark.parametrize("bad", [nan, inf])
def test_an_infinite_threshold_only_measures(bad):
    theirs, ours = twins([torch.tensor([1.0, bad, -2.0]), torch.tensor([3.0])])
    torch_clip_grad_norm_(theirs, inf)
    norm = clip_grad_norm_(ours, inf)
    assert theirs[1].grad.isnan().all()
    assert not norm.isfinite()
    assert ours[0].grad.nan_to_num(7, 8).tolist() == [1.0, 7.0 if isnan(bad) else 8.0, -2.0]
    assert ours[1].grad.tolist() == [3.0]


@pytest.mark.parametrize(
    ("values", "arguments"),
    [
        ([torch.tensor([3.0, -4.0])], (0,)),
        ([torch.tensor([3.0, 4.0])], (torch.tensor(0.7),)),
        *(([torch.tensor([3.0, 4.0])], (1.0, 2.0, False, foreach)) for foreach in (None, True, False)),
        ([torch.tensor([3 + 4j, 0j, 12j]), torch.tensor([1.0])], (1.0,)),
    ],
    ids=["zero", "tensor", "foreach None", "foreach True", "foreach False", "complex"],
)
def test_torchs_arguments_give_what_torch_gives(values, arguments):
    theirs, ours = twins(values)
    assert torch.equal(torch_clip_grad_norm_(theirs, *arguments), clip_grad_norm_(ours, *arguments))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("clip_", [clip_grad_norm_, clip_grad_value_])
@pytest.mark.parametrize("limit", [nan, -1, -1e-9, -inf, torch.tensor(-1.0)])
def test_a_negative_or_nan_limit_is_an_error_and_changes_nothing(clip_, limit):
    ours = parameter(torch.tensor([3.0, 4.0]))
    with pytest.raises(ValueError, match=r"(max_norm|clip_value) must be >= 0 \(inf: no clipping\), got"):
        clip_([ours], limit)
    assert ours.grad.tolist() == [3.0, 4.0]


def test_the_same_parameter_twice_counts_once():
    ours = parameter(torch.tensor([3.0, 4.0]))
    assert float(torch_clip_grad_norm_([ours, ours], 10.0)) == pytest.approx(7.07, rel=1e-3)
    assert float(clip_grad_norm_([ours, ours], 1.0)) == 5.0
    assert ours.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-5)


@pytest.mark.parametrize("sizes", [(4, 9), (4, 4)])
def test_expanded_gradients_that_share_memory_are_all_shrunk(sizes):
    source = torch.tensor([3.0])
    weights = [parameter(source.expand(size)) for size in sizes]
    clip_grad_norm_(weights, 1.0)
    assert norm_of(weights) <= 1 + 1e-6
    assert weights[0].grad[0] == weights[1].grad[0]


def test_every_kind_of_source_gives_the_same():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pairs, generator, groups = net.named_parameters(), net.parameters(), optimizer.param_groups
    for source in (net, generator, list(net.parameters()), pairs, groups, optimizer):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        assert float(clip_grad_norm_(source, 1.0)) == pytest.approx(sqrt(11), rel=1e-6)
        assert norm_of(net.parameters()) == pytest.approx(1.0, rel=1e-5)


def test_without_gradients_the_norm_is_zero():
    assert float(clip_grad_norm_(nn.Linear(2, 2), 1.0)) == 0.0
    assert float(clip_grad_norm_([], 1.0)) == 0.0
    assert clip_grad_value_(nn.Linear(2, 2), 1.0) is None


@pytest.mark.parametrize("bad", [nan, inf])
def test_error_if_nonfinite_raises_torchs_error_and_changes_nothing(bad):
    ours = parameter(torch.tensor([3.0, bad]))
    with pytest.raises(RuntimeError, match=r"^The total norm of order 2\.0 for gradients"):
        clip_grad_norm_([ours], 1.0, error_if_nonfinite=True)
    assert ours.grad[0] == 3.0


@PINNED
@given(shapes, seeds, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.floats(-3, 3))
def test_clipping_by_value_is_torchs_bit_for_bit(shapes, seed, dtype, log_limit):
    theirs, ours = twins(random_gradients(shapes, seed, dtype, 1.0))
    torch_clip_grad_value_(theirs, 10**log_limit)
    clip_grad_value_(ours, 10**log_limit)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_clipping_by_value_leaves_nan_and_bounds_inf():
    ours = parameter(torch.tensor([nan, inf, -inf, 0.5]))
    clip_grad_value_([ours], 1.0)
    assert ours.grad[0].isnan()
    assert ours.grad[1:].tolist() == [1.0, -1.0, 0.5]


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("clip", [clip_grad_norm_, autoclip.adaptive_grad_clip_])
def test_no_graph_is_kept_where_gradients_have_one(clip):
    weight = torch.nn.Parameter(torch.ones(3))
    (weight**3).sum().backward(create_graph=True)
    assert weight.grad.requires_grad
    assert not clip([weight], 0.1).requires_grad
    weight.grad = None


@pytest.mark.parametrize("norm_type", [-inf, -3.5, -1.0, -0.1, 0.0, 0, 0.1, 0.5, 1.5, 4.0, inf, "inf"])
@pytest.mark.parametrize("max_norm", [1.0, 1e-3, 1e6])
def test_every_order_that_torch_takes_gives_what_torch_gives(norm_type, max_norm):
    values = [torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, -2.0, 0.25])]
    theirs, ours = twins(values)
    found = clip_grad_norm_(ours, max_norm, norm_type)
    torch.testing.assert_close(found, torch_clip_grad_norm_(theirs, max_norm, norm_type), rtol=1e-6, atol=0)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=2e-6, atol=0)


@pytest.mark.parametrize("norm_type", [-3.5, -1.0, 0, 0.1, 1.0, 2.0, 3.5, inf])
@pytest.mark.parametrize("value", [nan, inf, -inf, 2e22, -2e200])
@pytest.mark.parametrize("others", [[0.0] * 9, [1.0], []], ids=["zeros", "a one", "none"])
@pytest.mark.parametrize("raises", [True, False])
def test_a_norm_that_is_not_finite_is_as_in_torch_for_every_order(norm_type, value, others, raises):
    gradients = [torch.tensor([value, *others], dtype=torch.float64), torch.ones(1, dtype=torch.float64)]
    theirs, ours = twins(gradients)
    outcomes = []
    for clip, weights in ((clip_grad_norm_, ours), (torch_clip_grad_norm_, theirs)):
        try:
            outcomes.append(clip(weights, 1.0, norm_type, error_if_nonfinite=raises).isfinite().item())
        except RuntimeError as error:
            outcomes.append(str(error).partition(" for gradients")[0])
    if abs(value) == 2e200 and norm_type in (2.0, 3.5) and not raises:  # torch's overflows, and with it what is left
        assert outcomes == [True, False]
        assert norm_of(ours, norm_type) == pytest.approx(1.0, rel=1e-6)
    else:
        assert outcomes[0] == outcomes[1]
        torch.testing.assert_close([p.grad for p in ours], [p.grad for p in theirs], rtol=1e-6, atol=0, equal_nan=True)


def test_an_exhausted_generator_is_told_as_by_torch():
    weights, _ = twins([torch.tensor([3.0, 4.0])])
    told = []
    for clip in (clip_grad_norm_, torch_clip_grad_norm_):
        generator = (weight for weight in weights)
        assert float(clip(generator, 1.0)) > 0
        with pytest.warns(UserWarning, match="empty generator") as warned:
            assert clip(generator, 1.0) == 0.0
        told.append([str(one.message) for one in warned])
    assert told[0] == told[1]


@pytest.mark.parametrize("whole", [True, False])
def test_both_compile_into_one_graph(whole):
    net = nn.Linear(3, 2)
    net(torch.ones(4, 3)).sum().backward()
    expected = torch.linalg.vector_norm(torch.stack([weight.grad.norm() for weight in net.parameters()]))
    compiled = torch.compile(
        lambda: clip_grad_norm_(net if whole else net.parameters(), 1.0), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(), expected)
    torch.compile(lambda: clip_grad_value_(net.parameters(), 0.1), fullgraph=True, backend="eager")()
    assert max(weight.grad.abs().max() for weight in net.parameters()) <= 0.1


@pytest.mark.parametrize("error_if_nonfinite", [False, True])
def test_tiny_gradients_are_measured_and_clipped(error_if_nonfinite):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1e-25, 0.0])
    norm = clip_grad_norm_([weight], 1e-30, error_if_nonfinite=error_if_nonfinite)
    assert norm.item() == pytest.approx(1e-25)
    assert weight.grad[0].item() == pytest.approx(1e-30, rel=1e-2)
