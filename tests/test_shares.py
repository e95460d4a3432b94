from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoclip.gate import Decision
from autoclip.gradients import measure
from autoclip.shares import Share, allowed_norm, combined, group_norms, shrink_
from tests import references
from tests.properties import pinned

PINNED = pinned(100)


def share(group, gradients, threshold, left=None, phase="active", order=2.0):
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients.values()]), order)
    value = norm.item()
    clipped = value > threshold
    decision = Decision(threshold, phase, clipped, (threshold if left is None else left) if clipped else value)
    return Share(group, list(gradients), norm, value, decision)


@PINNED
@given(st.lists(st.floats(0, 1e6, allow_subnormal=False), max_size=8), st.sampled_from([0.5, 1.0, 2.0, 3.0, inf]))
def test_norms_are_combined_as_the_norm_of_all(values, order):
    assert combined(values, order) == pytest.approx(references.total_norm(values, order), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("values", [[1e200, 1e200], [1e-200, 1e-200]])
def test_combining_neither_overflows_nor_underflows(values):
    assert combined(values, 2.0) == pytest.approx(values[0] * 2**0.5, rel=1e-12)


def test_no_bound_in_one_group_is_no_bound_on_all():
    assert combined([1.0, inf], 2.0) == inf
    assert combined([], 2.0) == 0.0


def test_the_groups_thresholds_bound_the_total_norm():
    one, two = {"a": torch.ones(1)}, {"b": torch.ones(1)}
    shares = [share("a", one, 3.0), share("b", two, 4.0)]
    assert allowed_norm(shares, None, 2.0) == 5.0
    assert allowed_norm(shares, None, inf) == 4.0
    assert allowed_norm([], None, 2.0) == inf


def test_a_bound_in_common_counts_once():
    gradients = [{name: torch.ones(1)} for name in "abc"]
    shares = [share(name, g, 1.0, phase="warmup") for name, g in zip("abc", gradients, strict=True)]
    assert allowed_norm(shares, 1.0, 2.0) == 1.0
    mixed = [*shares[:2], share("c", gradients[2], 3.0)]
    assert allowed_norm(mixed, 4.0, 2.0) == 5.0
    assert allowed_norm([mixed[2]], 4.0, 2.0) == 3.0


def test_group_norms_are_those_each_group_would_measure_by_itself():
    gradients = {name: torch.randn(7, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abcde")}
    norms = measure(gradients)
    members = [[0, 3], [1], [2, 4]]
    totals, values = group_norms(members, gradients, norms, 2.0)
    for own, total, value in zip(members, totals, values, strict=True):
        alone = measure({"abcde"[position]: gradients["abcde"[position]] for position in own})
        assert torch.equal(total, alone.total)
        assert value == alone.value


def test_a_group_whose_squares_underflow_beside_larger_ones_is_measured_exactly():
    gradients = {"a": torch.tensor([3.0]), "b": torch.full((10_000,), 5e-27), "c": torch.zeros(2)}
    totals, values = group_norms([[0], [1], [2]], gradients, measure(gradients), 2.0)
    assert values == pytest.approx([3.0, 5e-25, 0.0], rel=1e-6, abs=0)
    assert [total.item() for total in totals] == values
    _, values = group_norms([[0], [1, 2]], gradients, measure(gradients), 2.0)
    assert values == pytest.approx([3.0, 5e-25], rel=1e-6, abs=0)


@pytest.mark.parametrize("count", [1, 2, 60])
def test_at_the_threshold_each_share_is_scaled_as_by_torch(count):
    random = torch.Generator().manual_seed(0)
    gradients = {str(i): torch.randn(9, generator=random) * 10.0 ** (i % 5) for i in range(count)}
    shares = [share(name, {name: g}, 1.5 + 0.1 * i) for i, (name, g) in enumerate(gradients.items())]
    expected = []
    for one, gradient in zip(shares, gradients.values(), strict=True):
        parameter = torch.nn.Parameter(torch.zeros(9))
        parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([parameter], one.decision.threshold)
        expected.append(parameter.grad)
    removed, factor = shrink_(shares, gradients, {}, "norm")
    assert removed == set()
    assert (factor is None) == (count > 1)
    for gradient, wanted in zip(gradients.values(), expected, strict=True):
        assert torch.equal(gradient, wanted)


def test_each_share_meets_its_own_end():
    gradients = {name: torch.tensor([3.0, 4.0]) for name in ("kept", "scaled", "further", "removed", "pair")}
    first, second = {"pair": gradients["pair"]}, {"other": torch.tensor([0.0, 12.0])}
    gradients |= second
    shares = [
        share("kept", {"kept": gradients["kept"]}, 7.0),
        share("scaled", {"scaled": gradients["scaled"]}, 2.5),
        share("further", {"further": gradients["further"]}, 2.5, left=0.5),
        share("removed", {"removed": gradients["removed"]}, 2.5, left=0.0),
        share("two", first | second, 1.3),
    ]
    assert [one.limit for one in shares] == [None, 2.5, 0.5, 0.0, 1.3]
    assert shrink_(shares, gradients, {}, "norm") == ({"removed"}, None)
    assert gradients["kept"].tolist() == gradients["removed"].tolist() == [3.0, 4.0]
    assert gradients["scaled"].tolist() == pytest.approx([1.5, 2.0], rel=1e-6)
    assert gradients["further"].tolist() == pytest.approx([0.3, 0.4], rel=1e-6)
    assert gradients["pair"].tolist() == pytest.approx([0.3, 0.4], rel=1e-6)
    assert gradients["other"].tolist() == pytest.approx([0.0, 1.2], rel=1e-6)
    assert [one.left("norm") for one in shares] == pytest.approx([5.0, 2.5, 0.5, 0.0, 1.3], rel=1e-6)


def test_a_norm_that_is_not_finite_is_passed_on_as_by_torch():
    gradients = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0, nan]), "c": torch.tensor([1.0, inf])}
    shares = [share(name, {name: gradient}, 2.5) for name, gradient in gradients.items()]
    shrink_(shares, gradients, {}, "norm")
    assert gradients["a"].tolist() == pytest.approx([1.5, 2.0], rel=1e-6)
    assert gradients["b"].isnan().all()
    assert gradients["c"][0] == 0
    assert gradients["c"][1].isnan()
    assert share("a", {"a": torch.tensor([nan])}, inf).limit is None


@pytest.mark.parametrize("mode", ["value", "agc"])
def test_the_other_modes_limit_each_share_at_its_own(mode):
    gradients = {"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([3.0, 4.0]), "c": torch.tensor([6.0, 8.0])}
    weights = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.0, 2.0]), "c": torch.tensor([9.0, 0.0])}
    shares = [
        share("a", {"a": gradients["a"]}, 0.5, order=inf),
        share("rest", {"b": gradients["b"], "c": gradients["c"]}, 2.0, left=1.0, order=inf),
    ]
    assert shrink_(shares, gradients, weights, mode) == (set(), None)
    expected = {
        "value": {"a": [0.5, -0.5], "b": [1.0, 1.0], "c": [1.0, 1.0]},
        "agc": {"a": [0.3, -0.4], "b": [1.2, 1.6], "c": [5.4, 7.2]},
    }[mode]
    for name, gradient in gradients.items():
        assert gradient.tolist() == pytest.approx(expected[name], rel=1e-6)
