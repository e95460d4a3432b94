"""Clips one step's gradients as the gates of their groups decided: by us, or by somebody else's function."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from autoclip.gate import Decision
from autoclip.gradients import Norms, clip_coefficient, live_gradients, measure, measure_units, scale_
from autoclip.gradients.sharded import whole_number
from autoclip.groups import Groups
from autoclip.policies.policy import ALL
from autoclip.shares import GroupNorms, Share, allowed_norm, combined, shrink_

ClipFn = Callable[[float], Any]
"""clip_fn(max_norm) -> total norm before clipping: scales all gradients so that their norm is at most max_norm."""


@dataclass(slots=True)
class Clipped:
    """What clipping did to one step's gradients; not changed once made.

    Attributes:
        shares: of the groups that had gradients.
        total: norm of all before clipping, 0-d.
        value: the same as a float on the host.
        threshold: bound on the norm of all together; inf: none.
        coefficient: share of the norm that was left.
        kept: the gradients that are left.
        left: their norm.
        skipped: there were gradients, and all were removed.
    """

    shares: list[Share]
    total: Tensor
    value: float
    threshold: float
    coefficient: float
    kept: list[Tensor]
    left: float
    skipped: bool

    @property
    def clipped(self) -> bool:
        """Whether any group was clipped."""
        return any(one.decision.clipped for one in self.shares)

    @property
    def decisions(self) -> dict[str, Decision]:
        """Group's name -> what was decided."""
        return {one.group: one.decision for one in self.shares}


def measure_all(groups: Groups, gradients: Mapping[str, Tensor], mode: str, order: float, scale: Any) -> Norms:
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
    norms = measure_units(gradients, groups.parameters) if mode == "agc" else measure(gradients, order)
    if mode == "value" and not norms.alike:
        refuse_complex(gradients)
    if scale is None:
        return norms
    factor = float(scale)  # host read
    if not 0 < factor < inf:
        raise ValueError(f"loss_scale must be finite and > 0, got {factor}")
    return norms.without(factor)


def refuse_complex(gradients: Mapping[str, Tensor]) -> None:
    """Raise where a gradient is complex, which mode "value" cannot clamp, whether or not it would clip this step."""
    for name, gradient in gradients.items():
        if gradient.is_complex():
            raise TypeError(
                f"complex gradients cannot be clipped by value, only by norm, got {gradient.dtype} for parameter "
                f"{name!r}"
            )


def clip(
    groups: Groups,
    shares: list[Share],
    gradients: Mapping[str, Tensor],
    norms: Norms,
    mode: str,
    order: float,
    *,
    skip: bool,
) -> Clipped:
    """Carry out the decisions on the gradients.

    Args:
        groups: that the gradients belong to.
        shares: the decisions, by group.
        gradients: by parameter name.
        norms: of those, before clipping.
        mode: "norm", "value" or "agc".
        order: of the norm.
        skip: remove all gradients if the norm is not finite.
    """
    coefficient: float | None
    if not isfinite(norms.value) and skip:
        groups.remove_gradients()
        kept, coefficient = [], 0.0
    else:
        removed, coefficient = shrink_(shares, gradients, groups.parameters, mode, norms.scale, norms.alike)
        if removed:
            groups.remove_gradients(removed)
        kept = groups.kept(gradients, removed)
    if coefficient is None:
        coefficient = _coefficient(shares, norms.value, mode, order)
    return Clipped(
        shares=shares,
        total=norms.total,
        value=norms.value,
        threshold=allowed_norm(shares, groups.policy.warmup_total, order),
        coefficient=coefficient,
        kept=kept,
        left=norms.value * coefficient,
        skipped=bool(gradients) and not kept,
    )


def clip_with(
    clip_fn: ClipFn,
    groups: Groups,
    gradients: list[Tensor],
    loss: Callable[[], float | None],
    meet_nonfinite: Callable[[], None],
    *,
    skip: bool,
) -> Clipped:
    """Let somebody else's function clip, once, at the policy's threshold.

    If what is to be left depends on the norm of this step (inclusive policies, responses other than "scale"), the
    gradients are scaled once more.

    Args:
        clip_fn: clips all gradients.
        groups: of scope "global".
        gradients: that this rank holds.
        loss: reads the loss of the step.
        meet_nonfinite: called if the norm is not finite, before anything is learned; may raise.
        skip: remove all gradients if the norm is not finite.

    Raises:
        TypeError: `clip_fn` did not return a norm.
    """
    gate = groups.gates[ALL]
    limit = inf if gate.policy.inclusive else gate.policy.threshold()
    total = _norm(clip_fn(limit))
    value = float(total)  # host read
    if not isfinite(value):
        meet_nonfinite()
    decision = gate.decide(value, loss())
    if decision.clipped and 0 < decision.left < limit:
        # Not by the function: some unscale the gradients as well, which can be done but once a step.
        remaining = list(live_gradients(groups.parameters).values())
        at_threshold = limit == inf and decision.left == decision.threshold
        factor = clip_coefficient(total, decision.left) if at_threshold else decision.left / min(value, limit)
        scale_(remaining, torch.as_tensor(factor, device=total.device))
    share = Share(ALL, list(groups.parameters), total, value, decision)
    skipped = skip if not isfinite(value) else decision.left == 0 < value
    if skipped:
        groups.remove_gradients()
    coefficient = min(share.left("norm") / value, 1.0) if 0 < value < inf else float(not skipped)
    return Clipped(
        shares=[share],
        total=total,
        value=value,
        threshold=decision.threshold,
        coefficient=coefficient,
        kept=[] if skipped else gradients,
        left=value * coefficient,
        skipped=skipped,
    )


def _norm(returned: Any) -> Tensor:
    if isinstance(returned, Tensor) and returned.numel() == 1:
        return whole_number(returned)
    if isinstance(returned, int | float) and not isinstance(returned, bool):
        return torch.tensor(float(returned), dtype=torch.float64, device="cpu")
    raise TypeError(
        f"clip_fn(max_norm) must return the total norm before clipping, got {returned!r}; where the engine clips by "
        f"itself (DeepSpeed), give the engine the threshold, and watch the norm that it reports under NoClip()"
    )


def arrived(
    groups: Groups, shares: list[Share], norms: GroupNorms, factor: float, order: float, *, skip: bool
) -> Clipped:
    """What clipping did to gradients that the device clipped a step ago.

    Args:
        groups: that the gradients belong to.
        shares: the decisions, by group.
        norms: before clipping.
        factor: on the gradients of the first group.
        order: of the norm.
        skip: a step whose norm is not finite was left out.
    """
    skipped = skip and not isfinite(norms.total)
    if skipped:
        factor = 0.0
    elif len(shares) > 1:
        factor = _coefficient(shares, norms.total, "norm", order)
    return Clipped(
        shares=shares,
        total=norms.norms[0],
        value=norms.total,
        threshold=allowed_norm(shares, groups.policy.warmup_total, order),
        coefficient=factor,
        kept=[],
        left=norms.total * factor,
        skipped=skipped,
    )


def _coefficient(shares: Sequence[Share], total: float, mode: str, order: float) -> float:
    """Share of the norm of all gradients that the groups' limits leave."""
    if total <= 0 or all(one.limit is None for one in shares):
        return 1.0
    return min(combined([one.left(mode) for one in shares], order) / total, 1.0)


def name_nonfinite(names: Sequence[str], norms: Tensor) -> str:
    """The first parameter whose gradient is not finite, and how many more there are; norms by name, shape (n,)."""
    bad = [name for name, norm in zip(names, norms.tolist(), strict=True) if not isfinite(norm)]
    if not bad:
        return "the norm of all together"
    return bad[0] + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
