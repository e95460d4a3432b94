from math import inf, isfinite, nan, sqrt
from sys import float_info

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoclip import gradients as gradients_package
from autoclip.gradients import checked_norm_type
from tests.properties import pinned
from tests.references import total_norm


def measure(gradients, order=2.0):
    return gradients_package.measure({str(position): gradient for position, gradient in enumerate(gradients)}, order)


PINNED = pinned(200)
ORDERS = [0.5, 1.0, 2.0, 3.0, inf]

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
float64s = st.floats(min_value=-1e300, max_value=1e300)
orders = st.sampled_from([1.0, 2.0, 3.0, inf])
floating_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])


def elements(*tensors):
    return [element for tensor in tensors for element in tensor.detach().double().flatten().tolist()]


@pytest.mark.parametrize("order", ORDERS)
@floating_dtypes
def test_norms_of_random_gradients_equal_the_oracle(dtype, order):
    random = torch.Generator().manual_seed(0)
    shapes = [(), (7,), (3, 5), (2, 3, 4), (0,), (1000,)]
    gradients = [torch.randn(shape, generator=random).to(dtype) for shape in shapes]
    norms = measure(gradients, order)
    relative = 1e-12 if dtype is torch.float64 else 2e-6
    assert norms.value == pytest.approx(total_norm(elements(*gradients), order), rel=relative, abs=0)
    assert norms.value == float(norms.total)
    assert norms.total.shape == ()
    assert norms.each.shape == (len(shapes),)
    for norm, gradient in zip(norms.each.tolist(), gradients, strict=True):
        assert norm == pytest.approx(total_norm(elements(gradient), order), rel=relative, abs=0)


@floating_dtypes
def test_norms_are_float32_or_wider(dtype):
    norms = measure([torch.ones(3, dtype=dtype)])
    assert norms.total.dtype == norms.each.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)


@pytest.mark.parametrize(
    ("dtype", "values", "precision"), [(torch.float32, float32s, 1e-5), (torch.float64, float64s, 1e-9)]
)
@PINNED
@given(st.data(), orders)
def test_finite_gradients_never_measure_as_infinite(dtype, values, precision, data, order):
    gradient = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=20)), dtype=dtype)
    norm = measure([gradient], order).value
    assert isfinite(norm)
    assert norm == pytest.approx(total_norm(elements(gradient), order), rel=precision, abs=0)


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        (torch.full((10,), 1e30), sqrt(10) * 1e30),
        (torch.full((10,), 1e19), sqrt(10) * 1e19),
        (torch.full((10,), 3e38), sqrt(10) * 3e38),
        (torch.full((10,), 1e-45), sqrt(10) * 2**-149),
        (torch.full((10,), 1e-30), sqrt(10) * 1e-30),
        (torch.full((10,), 1e-19), sqrt(10) * 1e-19),
        (torch.full((4,), 60000.0, dtype=torch.float16), 120000.0),
        (torch.full((4,), 2.0**-24, dtype=torch.float16), 2.0**-23),
        (torch.full((1000,), 1.01, dtype=torch.bfloat16), sqrt(1000) * 1.0078125),
        (torch.full((4,), 1e30, dtype=torch.bfloat16), 2 * float(torch.tensor(1e30, dtype=torch.bfloat16))),
        (torch.full((10,), 1e300, dtype=torch.float64), sqrt(10) * 1e300),
        (torch.full((4,), 5e-324, dtype=torch.float64), 1e-323),
        (torch.tensor([3 + 4j, 12j]), 13.0),
        (torch.tensor([3e30 + 4e30j, 0j]), 5e30),
        (torch.tensor([3e200 + 4e200j], dtype=torch.complex128), 5e200),
    ],
    ids=str,
)
def test_euclidean_norm_of_extreme_gradients(gradient, expected):
    assert measure([gradient]).value == pytest.approx(expected, rel=1e-6, abs=0)


def test_a_norm_beyond_the_largest_float_measures_as_the_largest_float():
    assert measure([torch.full((10,), 1e308, dtype=torch.float64)]).value == float_info.max


def test_an_overflow_in_one_gradient_leaves_the_norms_of_the_others_right():
    norms = measure([torch.tensor([3.0, 4.0]), torch.full((10,), 1e30), torch.tensor([1e-30])])
    assert norms.each.tolist() == pytest.approx([5.0, sqrt(10) * 1e30, 1e-30], rel=1e-6, abs=0)


@pytest.mark.parametrize("scale", [1e-15, 1e-14, 1e-13, 1e-12])
def test_cubes_of_small_elements_are_not_lost(scale):
    assert measure([torch.full((8,), scale)], 3.0).value == pytest.approx(2 * scale, rel=1e-4, abs=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_only_a_gradient_that_is_not_finite_measures_so(bad, order):
    norms = measure([torch.ones(3), torch.tensor([1.0, bad, 2.0]), torch.full((2,), 1e30)], order)
    assert not isfinite(norms.value)
    assert [isfinite(norm) for norm in norms.each.tolist()] == [True, False, True]


@pytest.mark.parametrize("order", ORDERS)
def test_zeros_empty_gradients_and_no_gradients_measure_as_zero(order):
    for gradients in ([], [torch.zeros(3)], [torch.zeros(0)], [torch.zeros(0), torch.zeros(2, 0), torch.zeros(())]):
        norms = measure(gradients, order)
        assert norms.value == float(norms.total) == 0.0
        assert norms.total.dtype == torch.float32
        assert norms.each.tolist() == [0.0] * len(gradients)


@pytest.mark.parametrize("order", [1.0, 2.0, inf])
def test_a_sparse_gradient_measures_as_its_dense_sum_over_repeated_indices(order):
    indices, values = torch.tensor([[0, 2, 0]]), torch.tensor([[1.0, -2.0], [5.0, 0.0], [2.0, -2.0]])
    sparse = torch.sparse_coo_tensor(indices, values, (4, 2), check_invariants=True)
    assert measure([sparse], order).value == pytest.approx(
        total_norm(elements(sparse.to_dense()), order), rel=1e-6, abs=0
    )
    assert measure([sparse, torch.tensor([2.0])], order).value == pytest.approx(
        total_norm([*elements(sparse.to_dense()), 2.0], order), rel=1e-6, abs=0
    )
    assert not sparse.is_coalesced()


@pytest.mark.parametrize(("given", "order"), [(2, 2.0), (0.5, 0.5), ("inf", inf), (inf, inf), (torch.tensor(3), 3.0)])
def test_an_order_above_zero_is_accepted(given, order):
    assert checked_norm_type(given) == order


@pytest.mark.parametrize("given", [0, -1, -inf, nan, "fro", "nuc", None, [2]])
def test_what_is_no_order_of_a_norm_is_refused(given):
    with pytest.raises(ValueError, match=r"norm_type must be .*> 0 or inf, got"):
        checked_norm_type(given)


@pytest.mark.parametrize(
    ("given", "alike"),
    [
        ([torch.tensor([3.0, -4.0]), torch.tensor([[12.0]], dtype=torch.float16)], True),
        ([torch.ones(2), torch.ones(2, dtype=torch.complex64)], False),
        ([torch.ones(2), torch.ones(2).to_sparse()], False),
    ],
    ids=["plain", "complex", "sparse"],
)
def test_norms_tell_whether_the_gradients_are_known_to_be_alike(given, alike):
    assert measure(given).alike is alike
