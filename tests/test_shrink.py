import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from autoclip.gradients import clamp_, clip_coefficient, clip_coefficients, scale_, scale_each_
from tests import references
from tests.properties import pinned

PINNED = pinned(200)


@PINNED
@given(st.floats(min_value=1e-100, max_value=1e100), st.floats(min_value=1e-100, max_value=1e100))
def test_the_coefficient_equals_the_formula(norm, threshold):
    assume(norm > threshold)
    coefficient = float(clip_coefficient(torch.tensor(norm, dtype=torch.float64), threshold))
    assert coefficient == pytest.approx(references.clip_coefficient(norm, threshold), rel=1e-14, abs=0)
    assert 0 <= coefficient <= 1
    assert norm * coefficient <= threshold * (1 + 1e-15)


@pytest.mark.parametrize("threshold", [1e-4, 1e-7, 1e-20, 1e-30])
def test_a_tiny_threshold_is_met_within_a_thousandth(threshold):
    norm = torch.tensor(1.5 * threshold)
    after = float(norm) * float(clip_coefficient(norm, threshold))
    assert 0.999 * threshold <= after <= threshold


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_in_float32_and_rounded_once(dtype):
    gradient = torch.linspace(-60000, 60000, 101).to(dtype)
    coefficient = torch.tensor(8.3e-6)  # half precision itself holds 8.2850e-6 or 8.3447e-6
    expected = (gradient.float() * coefficient).to(dtype)
    scale_([gradient], coefficient)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(
    "shrink_", [lambda gradients: scale_(gradients, torch.tensor(0.5)), lambda gradients: clamp_(gradients, 2.0)]
)
def test_an_expanded_gradient_gets_memory_of_its_own(shrink_):
    source = torch.tensor([4.0, -4.0])
    gradient = source.expand(3, 2)
    shrink_([gradient])
    assert torch.equal(gradient, torch.tensor([[2.0, -2.0]] * 3))
    assert torch.equal(source, torch.tensor([4.0, -4.0]))


def test_clamping_a_sparse_gradient_bounds_the_sum_of_repeated_indices():
    indices, values = torch.tensor([[0, 2, 0]]), torch.tensor([2.0, -5.0, 2.0])
    sparse = torch.sparse_coo_tensor(indices, values, (3,), check_invariants=True)
    clamp_([sparse], 3.0)
    assert torch.equal(sparse.to_dense(), torch.tensor([3.0, 0.0, -3.0]))


@PINNED
@given(
    st.lists(st.tuples(st.floats(1e-3, 1e10), st.floats(1.001, 1e6)), min_size=2, max_size=40),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_coefficients_of_several_norms_are_those_of_each_bit_for_bit(pairs, dtype):
    norms = torch.tensor([threshold * ratio for threshold, ratio in pairs], dtype=dtype)
    thresholds = [threshold * (1e-9 if place % 3 == 0 else 1.0) for place, (threshold, _) in enumerate(pairs)]
    together = clip_coefficients(norms, thresholds)
    alone = [clip_coefficient(norm, threshold) for norm, threshold in zip(norms, thresholds, strict=True)]
    assert torch.equal(together, torch.stack(alone))


def assert_scaled_each_as_one_by_one(make, factors):
    together, alone = [make(place) for place in range(len(factors))], [make(place) for place in range(len(factors))]
    coefficients = torch.tensor(factors)
    scale_each_(together, coefficients, coefficients.min().item())
    for gradient, coefficient in zip(alone, coefficients, strict=True):
        scale_([gradient], coefficient)
    for first, second in zip(together, alone, strict=True):
        assert first.dtype is second.dtype
        assert torch.equal(first.to_dense(), second.to_dense())


FACTORS = {
    "one": [0.3],
    "several": [0.3, 1.0, 8.3e-6, 0.999],
    "tiny": [0.3, 1e-35, 1e-42, 0.5],
    "zero": [0.0, 0.5],
}


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str
)
def test_scaling_each_by_its_own_equals_scaling_one_by_one(dtype, factors):
    base = torch.linspace(-60000, 60000, 101)
    assert_scaled_each_as_one_by_one(lambda place: (base / (place + 1)).to(dtype), factors)


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
def test_scaling_each_takes_dtypes_mixed_sparse_expanded_sliced_and_0d(factors):
    def make(place):
        indices, values = torch.tensor([[0, 2, 0]]), torch.tensor([1.0, 5.0, 2.0])
        return [
            torch.sparse_coo_tensor(indices, values, (3,), check_invariants=True),
            torch.tensor([4.0, -4.0]).expand(3, 2),
            torch.arange(12.0).reshape(3, 4)[:, ::2].half(),
            torch.tensor(7.0),
        ][place]

    assert_scaled_each_as_one_by_one(make, factors)


def test_scaling_each_keeps_the_objects_and_leaves_the_source_of_an_expanded_one():
    source = torch.tensor([4.0, -4.0])
    gradients = [torch.ones(2), source.expand(3, 2)]
    addresses = gradients[0].data_ptr()
    scale_each_(gradients, torch.tensor([0.5, 0.25]), 0.25)
    assert gradients[0].data_ptr() == addresses
    assert gradients[0].tolist() == [0.5, 0.5]
    assert gradients[1].tolist() == [[1.0, -1.0]] * 3
    assert source.tolist() == [4.0, -4.0]
