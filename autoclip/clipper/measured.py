"""One step's gradients: their norms, group by group, and how they are made smaller as decided."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from autoclip.controller import Decision
from autoclip.gradients import (
    Norms,
    clamp_,
    clip_coefficient,
    clip_coefficients,
    least_fast_norm,
    limit_units_,
    measure,
    measure_units,
    measure_weighted,
    refuse_complex,
    scale_,
    scale_each_,
)

ELEMENTWISE = ("value", "agc")
"""Modes in which the elements of a gradient may have different factors."""


@dataclass(slots=True)
class Measured:
    """One step's gradients and their norms before clipping; not changed once made.

    Attributes:
        gradients: by parameter name.
        all: norms of each, and of all together.
        members: group's name -> positions of its gradients; only groups that have any.
        norms: of these groups, shape (groups,), or 0-d of a single one.
        values: group's name -> the same as a float on the host.
    """

    gradients: Mapping[str, Tensor]
    all: Norms
    members: Mapping[str, Sequence[int]]
    norms: Tensor
    values: Mapping[str, float]


def measure_all(
    gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor], mode: str, order: float, scale: Any
) -> Norms:
    """The norms that a mode goes by, without the scale that the gradients still carry (None: they carry none).

    Raises:
        ValueError: the scale is not finite, or not above 0.
        TypeError: gradients that the mode cannot clip, or that cannot be written to.
    """
    # The first stands for all: a loop makes its gradients in one way.
    if gradients and (first := next(iter(gradients.values()))).is_inference():
        raise TypeError(
            f"the gradient of parameter {next(iter(gradients))!r} is an inference tensor, shape {tuple(first.shape)}, "
            f"which cannot be clipped in place: make gradients outside torch.inference_mode(), or assign clones"
        )
    if mode == "agc":
        norms = measure_units(gradients, parameters)
    elif mode == "param_rms":
        norms = measure_weighted(gradients, parameters)
    else:
        norms = measure(gradients, order)
        if mode == "value" and not norms.alike:
            refuse_complex(gradients)
    if scale is None:
        return norms
    factor = float(scale)  # host read
    if not 0 < factor < inf:
        raise ValueError(f"loss_scale must be finite and > 0, got {factor}")
    return norms.without(factor)


def group_norms(
    members: Sequence[Sequence[int]], gradients: Mapping[str, Tensor], norms: Norms, order: float
) -> tuple[Tensor, list[float]]:
    """Norm of each group before clipping as it would be measured by itself, shape (groups,), and as floats of the host.

    Args:
        members: of each group, positions in the gradients.
        gradients: by parameter name, in the order of the norms.
        norms: of all of them.
        order: of the norm.
    """
    totals = norms.each
    if len(members) < len(gradients):
        totals = torch.stack([torch.linalg.vector_norm(norms.each[list(own)], order) for own in members])
    values = totals.tolist()  # host read
    smallest = least_fast_norm(order)
    if min(values, default=inf) >= smallest or totals.dtype is torch.float64:
        return totals, values
    names = list(gradients)
    for group in [group for group, value in enumerate(values) if value < smallest]:
        # Powers underflow, beside a larger norm that hid it.
        exact = measure({names[position]: gradients[names[position]] for position in members[group]}, order)
        exact = exact.without(norms.scale)
        if exact.value != 0:
            totals = totals.to(exact.total, copy=True)
            totals[group], values[group] = exact.total, exact.value
    return totals, values


def shrink_(
    measured: Measured, decisions: Mapping[str, Decision], parameters: Mapping[str, Tensor], mode: str
) -> tuple[Collection[str], float | None]:
    """Carry out the decisions on the gradients, in place.

    Args:
        measured: the gradients with their norms.
        decisions: on every group in it, in its order.
        parameters: by name.
        mode: "norm" and "param_rms" multiply, "value" clamps each element, "agc" limits each unit by its weights.

    Returns:
        Names of the groups whose gradients are to be removed, and the factor if there is only one.
    """
    removed: set[str] = set()
    places: list[int] = []  # of the groups to be made smaller
    shrunk, limits, further, least = [], [], [], 1.0
    for place, (group, one) in enumerate(decisions.items()):
        limit = one.clipped_norm if one.clipped else one.limit
        if limit == 0:
            removed.add(group)
        elif limit is not None:
            if limit != one.threshold:
                further.append(len(places))
            places.append(place)
            shrunk.append(one)
            limits.append(limit)
            least = min(least, limit / one.norm)
    if not places:
        return removed, None if removed else 1.0
    gradients, names, scale = list(measured.gradients.values()), list(measured.gradients), measured.all.scale
    members = list(measured.members.values())
    if mode in ELEMENTWISE:
        for place, limit in zip(places, limits, strict=True):
            tensors = [gradients[position] for position in members[place]]
            if mode == "value":
                clamp_(tensors, limit * scale)
            else:
                weights = [parameters[names[position]] for position in members[place]]
                limit_units_(tensors, weights, limit * scale, wide=measured.norms.dtype is torch.float64)
        return removed, None
    if len(decisions) == 1:
        norm, limit = measured.norms.reshape(()), limits[0]
        factor = norm.new_tensor(limit / shrunk[0].norm) if further else clip_coefficient(norm, limit)
        return removed, scale_(gradients, factor, alike=measured.all.alike)
    factors = clip_coefficients(measured.norms if len(places) == len(decisions) else measured.norms[places], limits)
    if further:  # below the threshold the factor is that of the limit itself; at it bit for bit torch's
        factors[further] = factors.new_tensor([limits[place] / shrunk[place].norm for place in further])
    tensors = [gradients[position] for place in places for position in members[place]]
    if len(places) < len(tensors):
        factors = factors[[place for place, at in enumerate(places) for _ in members[at]]]
    scale_each_(tensors, factors, least, alike=measured.all.alike)
    return removed, None


def coefficient_of(decisions: Collection[Decision], total: float, mode: str, order: float) -> float:
    """Share of the norm of all gradients that is left, if any of their groups was shrunk."""
    if total <= 0:
        return 1.0
    return min(combined([rounded_norm(one, mode) for one in decisions], order) / total, 1.0)


def rounded_norm(decision: Decision, mode: str) -> float:
    """Norm that is left, as float32 rounds it at best."""
    norm, threshold = decision.norm, decision.threshold
    limit = decision.clipped_norm if decision.clipped else decision.limit
    if limit is None:
        return norm
    if mode not in ELEMENTWISE and limit == threshold:
        return norm * (threshold / (norm + min(1e-6, 1e-3 * threshold)))
    return limit


def norms_left(measured: Measured, decisions: Mapping[str, Decision], mode: str) -> dict[str, float]:
    """Norm of each gradient after clipping, by parameter name, reckoned from the norms before."""
    names, before = list(measured.gradients), measured.all.each.tolist()  # host read
    left = {}
    for one, own in zip(decisions.values(), measured.members.values(), strict=True):
        for place in own:
            share = rounded_norm(one, mode) / one.norm if one.norm > 0 else 1.0
            limited = mode in ELEMENTWISE
            left[names[place]] = min(before[place], rounded_norm(one, mode)) if limited else before[place] * share
    return left


def allowed_norm(decisions: Collection[Decision], order: float) -> float:
    """Bound that the thresholds of all groups set on the norm of all gradients together; inf: none.

    Groups that share a bound (`Decision.is_shared`) count once.
    """
    own = [one.threshold for one in decisions if not one.is_shared]
    common = [next(one.threshold for one in decisions if one.is_shared)] if len(own) < len(decisions) else []
    return combined([*own, *common], order) or inf


def combined(values: Sequence[float], order: float) -> float:
    """Norm of all groups together from the norm of each, p-th root of the sum of p-th powers; 0 of none."""
    largest = max(values, default=0.0)
    if order == inf or largest in (0, inf) or len(values) == 1:
        return largest
    return float(largest * sum([(value / largest) ** order for value in values]) ** (1 / order))


def name_nonfinite(names: Collection[str], norms: Tensor) -> str:
    """The first parameter whose gradient is not finite, and how many more there are; norms by name, shape (n,)."""
    bad = [name for name, norm in zip(names, norms.tolist(), strict=True) if not isfinite(norm)]
    if not bad:
        return "the norm of all together"
    return bad[0] + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
