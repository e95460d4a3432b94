"""One step's gradients: their norms, group by group, and the decisions on those carried out on the tensors."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from autoclip.gate import Decision
from autoclip.gradients import (
    Norms,
    clamp_,
    clip_coefficient,
    clip_coefficients,
    least_fast_norm,
    limit_units_,
    measure,
    measure_units,
    scale_,
    scale_each_,
)


@dataclass(slots=True)
class Measured:
    """One step's gradients and their norms before clipping; not changed once made.

    Attributes:
        gradients: by parameter name.
        all: norms of each, and of all together.
        members: group's name -> positions of its gradients; only groups that have any.
        norms: of each of these groups, 0-d.
        values: group's name -> the same as a float on the host.
    """

    gradients: Mapping[str, Tensor]
    all: Norms
    members: Mapping[str, Sequence[int]]
    norms: Sequence[Tensor]
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
    norms = measure_units(gradients, parameters) if mode == "agc" else measure(gradients, order)
    if mode == "value" and not norms.alike:
        _refuse_complex(gradients)
    if scale is None:
        return norms
    factor = float(scale)  # host read
    if not 0 < factor < inf:
        raise ValueError(f"loss_scale must be finite and > 0, got {factor}")
    return norms.without(factor)


def _refuse_complex(gradients: Mapping[str, Tensor]) -> None:
    """Raise where a gradient is complex, which mode "value" cannot clamp, whether or not it would clip this step."""
    for name, gradient in gradients.items():
        if gradient.is_complex():
            raise TypeError(
                f"complex gradients cannot be clipped by value, only by norm, got {gradient.dtype} for parameter "
                f"{name!r}"
            )


def group_norms(
    members: Sequence[Sequence[int]], gradients: Mapping[str, Tensor], norms: Norms, order: float
) -> tuple[Sequence[Tensor], list[float]]:
    """Norm of each group before clipping as it would be measured by itself, 0-d, and as a float of the host.

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
    small = [group for group, value in enumerate(values) if value < smallest]
    if not small:
        return totals.unbind(), values
    names = list(gradients)
    for group in small:  # powers that underflow, beside a larger norm that hid it
        exact = measure({names[position]: gradients[names[position]] for position in members[group]}, order)
        exact = exact.without(norms.scale)
        if exact.value != 0:
            totals = totals.to(exact.total, copy=True)
            totals[group], values[group] = exact.total, exact.value
    return totals.unbind(), values


def shrink_(
    measured: Measured, decisions: Mapping[str, Decision], parameters: Mapping[str, Tensor], mode: str
) -> tuple[Collection[str], float | None]:
    """Carry out the decisions on the gradients, in place.

    Args:
        measured: the gradients with their norms.
        decisions: on every group in it, in its order.
        parameters: by name.
        mode: "norm" multiplies, "value" clamps each element, "agc" limits each unit by its weights.

    Returns:
        Names of the groups whose gradients are to be removed, and the factor if there is only one.
    """
    removed, shrunk = set(), []
    for (group, one), own, norm in zip(decisions.items(), measured.members.values(), measured.norms, strict=True):
        limit = one.limit
        if limit == 0:
            removed.add(group)
        elif limit is not None:
            shrunk.append((own, norm, one, limit))
    if not shrunk:
        return removed, None if removed else 1.0
    gradients, names, scale = list(measured.gradients.values()), list(measured.gradients), measured.all.scale
    if mode == "norm" and len(shrunk) == 1:
        (own, norm, one, limit), is_only = shrunk[0], len(decisions) == 1
        tensors = gradients if is_only else [gradients[place] for place in own]
        factor = scale_(tensors, _factor(norm, one, limit), alike=measured.all.alike)
        return removed, factor if is_only else None
    if mode == "norm":
        factors = _factors(*zip(*((norm, one, limit) for _, norm, one, limit in shrunk), strict=True))
        if any(len(own) > 1 for own, _, _, _ in shrunk):
            factors = factors[[place for place, (own, _, _, _) in enumerate(shrunk) for _ in own]]
        scale_each_([gradients[place] for own, _, _, _ in shrunk for place in own], factors)
        return removed, None
    for own, norm, _, limit in shrunk:
        tensors = [gradients[place] for place in own]
        if mode == "value":
            clamp_(tensors, limit * scale)
        else:
            wide = norm.dtype is torch.float64
            limit_units_(tensors, [parameters[names[place]] for place in own], limit * scale, wide=wide)
    return removed, None


def _factor(norm: Tensor, decision: Decision, limit: float) -> Tensor:
    """Factor that brings a norm down to a limit, 0-d; at the threshold bit for bit torch's."""
    return clip_coefficient(norm, limit) if limit == decision.threshold else norm.new_tensor(limit / decision.norm)


def _factors(norms: Sequence[Tensor], decisions: Sequence[Decision], limits: Sequence[float]) -> Tensor:
    """As `_factor`, of several, shape (n,)."""
    factors = clip_coefficients(torch.stack(list(norms)), limits)
    other = [place for place, one in enumerate(decisions) if limits[place] != one.threshold]
    if other:
        factors[other] = factors.new_tensor([limits[place] / decisions[place].norm for place in other])
    return factors


def coefficient_of(decisions: Collection[Decision], total: float, mode: str, order: float) -> float:
    """Share of the norm of all gradients that the decisions on their groups leave."""
    if total <= 0 or all(one.limit is None for one in decisions):
        return 1.0
    return min(combined([one.rounded_norm(mode) for one in decisions], order) / total, 1.0)


def allowed_norm(decisions: Collection[Decision], together: float | None, order: float) -> float:
    """Bound that the groups' thresholds set on the norm of all gradients together; inf: none.

    Args:
        decisions: on all groups that have gradients.
        together: bound on the norm of all groups in their warm-up, where they have one in common.
        order: of the norm.
    """
    own = [one.threshold for one in decisions if together is None or one.phase == "active"]
    common = [together] if together is not None and len(own) < len(decisions) else []
    return combined([*own, *common], order) or inf


def combined(values: Sequence[float], order: float) -> float:
    """Norm of all groups together from the norm of each, p-th root of the sum of p-th powers; 0 of none."""
    largest = max(values, default=0.0)
    if order == inf or largest in (0, inf) or len(values) == 1:
        return largest
    return float(largest * sum((value / largest) ** order for value in values) ** (1 / order))


def name_nonfinite(names: Collection[str], norms: Tensor) -> str:
    """The first parameter whose gradient is not finite, and how many more there are; norms by name, shape (n,)."""
    bad = [name for name, norm in zip(names, norms.tolist(), strict=True) if not isfinite(norm)]
    if not bad:
        return "the norm of all together"
    return bad[0] + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
