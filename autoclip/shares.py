"""One step's gradients, group by group: the decision on each group's norm is carried out on its tensors."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

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
    scale_,
    scale_each_,
)


@dataclass(slots=True)
class Share:
    """A group's part in one step; not changed once made.

    Attributes:
        group: its name.
        names: of its parameters that have a gradient.
        norm: before clipping, 0-d.
        value: the norm as a float on the host.
        decision: what to do with it.
    """

    group: str
    names: Sequence[str]
    norm: Tensor
    value: float
    decision: Decision

    @property
    def limit(self) -> float | None:
        """Norm to shrink to; 0: the gradients are removed; None: they are not touched."""
        if self.decision.clipped:
            return self.decision.left
        # What is not finite is passed on as torch does, by a factor that is not finite either.
        return None if isfinite(self.value) or self.decision.threshold == inf else self.decision.threshold

    def left(self, mode: str) -> float:
        """Norm that is left, as float32 rounds it at best."""
        limit = self.limit
        if limit is None:
            return self.value
        if mode == "norm" and limit == self.decision.threshold:
            return self.value * (limit / (self.value + min(1e-6, 1e-3 * limit)))
        return limit


@dataclass(slots=True)
class GroupNorms:
    """Norms of one step's gradients before clipping, group by group; not changed once made.

    Attributes:
        names: of the parameters that have a gradient.
        members: group's name -> positions of its parameters among the names; only groups that have any.
        norms: of each of these groups, 0-d.
        values: the same as floats on the host.
        total: norm of all together, as a float on the host.
    """

    names: Sequence[str]
    members: Mapping[str, Sequence[int]]
    norms: Sequence[Tensor]
    values: Sequence[float]
    total: float

    def shares(self, decide: Callable[[str, float], Decision]) -> list[Share]:
        """Each group with the decision that `decide(group, norm)` makes for it."""
        names, whole = self.names, len(self.names)
        return [
            Share(
                group,
                names if len(own) == whole else [names[place] for place in own],
                norm,
                value,
                decide(group, value),
            )
            for (group, own), norm, value in zip(self.members.items(), self.norms, self.values, strict=True)
        ]


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
    shares: Sequence[Share],
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    mode: str,
    scale: float = 1.0,
    alike: bool = False,
) -> tuple[Collection[str], float | None]:
    """Carry out the decisions on the gradients, in place.

    Args:
        shares: of all groups that have gradients.
        gradients: by parameter name.
        parameters: by name.
        mode: "norm" multiplies, "value" clamps each element, "agc" limits each unit by its weights.
        scale: that the gradients still carry, and the norms do not.
        alike: as in `scale_`.

    Returns:
        Names of the groups whose gradients are to be removed, and the factor if there is only one.
    """
    limits = [(share, limit) for share in shares if (limit := share.limit) is not None]
    if not limits:
        return (), 1.0
    removed = {share.group for share, limit in limits if limit == 0}
    limits = [(share, limit) for share, limit in limits if limit > 0]
    if mode == "norm" and len(limits) == 1:
        ((share, limit),) = limits
        own = list(gradients.values()) if len(shares) == 1 else [gradients[name] for name in share.names]
        factor = scale_(own, _factors(limits), alike=alike)
        return removed, factor if len(shares) == 1 else None
    if mode == "norm" and limits:
        factors = _factors(limits)
        if any(len(share.names) > 1 for share, _ in limits):
            factors = factors[[place for place, (share, _) in enumerate(limits) for _ in share.names]]
        scale_each_([gradients[name] for share, _ in limits for name in share.names], factors)
        return removed, None
    for share, limit in limits:
        own = [gradients[name] for name in share.names]
        if mode == "value":
            clamp_(own, limit * scale)
        else:
            wide = share.norm.dtype is torch.float64
            limit_units_(own, [parameters[name] for name in share.names], limit * scale, wide=wide)
    return removed, None


def _factors(limits: Sequence[tuple[Share, float]]) -> Tensor:
    """Factor on the gradients of each share, 0-d of one; at the threshold bit for bit torch's."""
    first, limit = limits[0]
    if len(limits) == 1:
        at_threshold = limit == first.decision.threshold
        return clip_coefficient(first.norm, limit) if at_threshold else first.norm.new_tensor(limit / first.value)
    norms = torch.stack([share.norm for share, _ in limits])
    factors = clip_coefficients(norms, [limit for _, limit in limits])
    other = [place for place, (share, limit) in enumerate(limits) if limit != share.decision.threshold]
    if other:
        factors[other] = norms.new_tensor([limits[place][1] / limits[place][0].value for place in other])
    return factors


def allowed_norm(shares: Sequence[Share], together: float | None, order: float) -> float:
    """Bound that the groups' thresholds set on the norm of all gradients together; inf: none.

    Args:
        shares: of all groups that have gradients.
        together: bound on the norm of all groups in their warm-up, where they have one in common.
        order: of the norm.
    """
    if together is None and len(shares) == 1:
        return shares[0].decision.threshold
    own = [one.decision.threshold for one in shares if together is None or one.decision.phase == "active"]
    common = [together] if together is not None and len(own) < len(shares) else []
    return combined([*own, *common], order) or inf


def combined(values: Sequence[float], order: float) -> float:
    """Norm of all groups together from the norm of each, p-th root of the sum of p-th powers; 0 of none."""
    largest = max(values, default=0.0)
    if order == inf or largest in (0, inf) or len(values) == 1:
        return largest
    return float(largest * sum((value / largest) ** order for value in values) ** (1 / order))
