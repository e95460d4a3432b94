from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoclip.clipper.measured import Measured, allowed_norm, combined, group_norms, rounded_norm, shrink_
from autoclip.controller import Decision, share_bound
from autoclip.gradients import measure
from tests import references
from tests.properties import pinned

PINNED = pinned(100)


def decided(norm, threshold, left=None, phase="active"):
    clipped = norm > threshold
    return Decision(norm, threshold, phase, clipped, (threshold if left is None else left) if clipped else norm)


def step(groups, gradients, order=2.0):
    """The gradients, measured by group (its names, threshold, norm to leave), and the decisions."""
    places = {name: place for place, name in enumerate(gradients)}
    members = {group: [places[name] for name in names] for group, (names, *_) in groups.items()}
    norms = torch.stack(
        [
            torch.linalg.vector_norm(torch.cat([gradients[name].flatten() for name in names]), order)
            for names, *_ in groups.values()
        ]
    )
    values = {group: norm.item() for group, norm in zip(groups, norms, strict=True)}
    made = {group: decided(values[group], *rest) for group, (_, *rest) in groups.items()}
    return Measured(gradients, measure(gradients, order), members, norms, values), made


@PINNED
@given(st.lists(st.floats(0, 1e6, allow_subnormal=False), max_size=8), st.sampled_from([0.5, 1.0, 2.0, 3.0, inf]))
def test_norms_are_combined_as_the_norm_of_all(values, order):
    assert combined(values, order) == pytest.approx(references.total_norm(values, order), rel=1e-12, abs=1e-300)


def test_combining_neither_overflows_nor_underflows():
    for value in (1e200, 1e-200):
        assert combined([value, value], 2.0) == pytest.approx(value * 2**0.5, rel=1e-12)
    assert combined([1.0, inf], 2.0) == inf
    assert combined([], 2.0) == 0.0


def test_the_groups_thresholds_bound_the_total_norm():
    made = [decided(1.0, 3.0), decided(1.0, 4.0)]
    assert allowed_norm(made, 2.0) == 5.0
    assert allowed_norm(made, inf) == 4.0
    assert allowed_norm([], 2.0) == inf


def test_a_bound_in_common_counts_once():
    made = [share_bound(1.0, 2.0, 4.0)] * 3
    assert allowed_norm(made, 2.0) == 4.0
    mixed = [*made[:2], decided(1.0, 3.0)]
    assert allowed_norm(mixed, 2.0) == 5.0
    assert allowed_norm([mixed[2]], 2.0) == 3.0


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
def test_at_the_threshold_each_group_is_scaled_as_by_torch(count):
    random = torch.Generator().manual_seed(0)
    gradients = {str(i): torch.randn(9, generator=random) * 10.0 ** (i % 5) for i in range(count)}
    measured, made = step({name: ([name], 1.5 + 0.1 * i) for i, name in enumerate(gradients)}, gradients)
    expected = []
    for one, gradient in zip(made.values(), gradients.values(), strict=True):
        parameter = torch.nn.Parameter(torch.zeros(9))
        parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([parameter], one.threshold)
        expected.append(parameter.grad)
    removed, factor = shrink_(measured, made, {}, "norm")
    assert removed == set()
    assert (factor is None) == (count > 1)
    for gradient, wanted in zip(gradients.values(), expected, strict=True):
        assert torch.equal(gradient, wanted)


def test_each_group_meets_its_own_end():
    gradients = {name: torch.tensor([3.0, 4.0]) for name in ("kept", "scaled", "further", "removed", "pair")}
    gradients["other"] = torch.tensor([0.0, 12.0])
    groups = {
        "kept": (["kept"], 7.0),
        "scaled": (["scaled"], 2.5),
        "further": (["further"], 2.5, 0.5),
        "removed": (["removed"], 2.5, 0.0),
        "two": (["pair", "other"], 1.3),
    }
    measured, made = step(groups, gradients)
    assert [one.limit for one in made.values()] == [None, 2.5, 0.5, 0.0, 1.3]
    assert shrink_(measured, made, {}, "norm") == ({"removed"}, None)
    assert gradients["kept"].tolist() == gradients["removed"].tolist() == [3.0, 4.0]
    assert gradients["scaled"].tolist() == pytest.approx([1.5, 2.0], rel=1e-6)
    assert gradients["further"].tolist() == pytest.approx([0.3, 0.4], rel=1e-6)
    assert gradients["pair"].tolist() == pytest.approx([0.3, 0.4], rel=1e-6)
    assert gradients["other"].tolist() == pytest.approx([0.0, 1.2], rel=1e-6)
    assert [rounded_norm(one, "norm") for one in made.values()] == pytest.approx([5.0, 2.5, 0.5, 0.0, 1.3], rel=1e-6)


def test_a_norm_that_is_not_finite_is_passed_on_as_by_torch():
    gradients = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0, nan]), "c": torch.tensor([1.0, inf])}
    shrink_(*step({name: ([name], 2.5) for name in gradients}, gradients), {}, "norm")
    assert gradients["a"].tolist() == pytest.approx([1.5, 2.0], rel=1e-6)
    assert gradients["b"].isnan().all()
    assert gradients["c"][0] == 0
    assert gradients["c"][1].isnan()
    assert decided(nan, inf).limit is None


@pytest.mark.parametrize("mode", ["value", "agc"])
def test_the_other_modes_limit_each_group_at_its_own(mode):
    gradients = {"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([3.0, 4.0]), "c": torch.tensor([6.0, 8.0])}
    weights = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.0, 2.0]), "c": torch.tensor([9.0, 0.0])}
    measured, made = step({"a": (["a"], 0.5), "rest": (["b", "c"], 2.0, 1.0)}, gradients, inf)
    assert shrink_(measured, made, weights, mode) == (set(), None)
    expected = {
        "value": {"a": [0.5, -0.5], "b": [1.0, 1.0], "c": [1.0, 1.0]},
        "agc": {"a": [0.3, -0.4], "b": [1.2, 1.6], "c": [5.4, 7.2]},
    }[mode]
    for name, gradient in gradients.items():
        assert gradient.tolist() == pytest.approx(expected[name], rel=1e-6)
