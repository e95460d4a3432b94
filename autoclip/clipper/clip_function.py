"""Somebody else's function that clips, at the threshold of a policy."""

from collections.abc import Callable
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from autoclip.clipper.groups import Groups
from autoclip.controller import Decision
from autoclip.gradients import clip_coefficient, gradients_of, scale_
from autoclip.gradients.sharded import to_scalar
from autoclip.policies.policy import ALL

ClipFn = Callable[[float], Any]
"""clip_fn(max_norm) -> total norm before clipping: scales all gradients so that their norm is at most max_norm."""


def clip_with(
    clip_fn: ClipFn,
    groups: Groups,
    loss: Callable[[], float | None],
    meet_nonfinite: Callable[[], None],
    *,
    skip: bool,
) -> tuple[Tensor, Decision, float, bool]:
    """Let somebody else's function clip, once, at the policy's threshold.

    If what is to be left depends on the norm of this step (inclusive policies, responses other than "scale"), the
    gradients are scaled once more.

    Args:
        clip_fn: clips all gradients.
        groups: of scope "global".
        loss: reads the loss of the step.
        meet_nonfinite: called if the norm is not finite, before anything is learned; may raise.
        skip: remove all gradients if the norm is not finite.

    Returns:
        The norm before clipping, 0-d; what was decided; the share of the norm that is left; whether the gradients were
        removed.

    Raises:
        TypeError: `clip_fn` did not return a norm.
    """
    controller = groups.controllers[ALL]
    limit = inf if controller.policy.inclusive else controller.policy.threshold()
    total = _norm(clip_fn(limit))
    value = float(total)  # host read
    if not isfinite(value):
        meet_nonfinite()
    decision = controller.decide(value, loss())
    if decision.clipped and 0 < decision.clipped_norm < limit:
        # Not by the function: some unscale the gradients as well, which can be done but once a step.
        remaining = list(gradients_of(groups.parameters).values())
        at_threshold = limit == inf and decision.clipped_norm == decision.threshold
        factor = (
            clip_coefficient(total, decision.clipped_norm)
            if at_threshold
            else decision.clipped_norm / min(value, limit)
        )
        scale_(remaining, torch.as_tensor(factor, device=total.device))
    skipped = skip if not isfinite(value) else decision.clipped_norm == 0 < value
    if skipped:
        groups.remove_gradients()
    coefficient = min(decision.rounded_norm("norm") / value, 1.0) if 0 < value < inf else float(not skipped)
    return total, decision, coefficient, skipped


def _norm(returned: Any) -> Tensor:
    if isinstance(returned, Tensor) and returned.numel() == 1:
        return to_scalar(returned)
    if isinstance(returned, int | float) and not isinstance(returned, bool):
        return torch.tensor(float(returned), dtype=torch.float64, device="cpu")
    raise TypeError(
        f"clip_fn(max_norm) must return the total norm before clipping, got {returned!r}; where the engine clips by "
        f"itself, give it the threshold of an autoclip.Tuner() (DeepSpeed: autoclip.integrations.deepspeed.attach)"
    )
