"""Somebody else's function that clips, at the threshold of a policy."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor

from autoclip.controller import Decision
from autoclip.gradients import Norms, clip_coefficient, gradients_of, scale_
from autoclip.gradients.sharded import to_scalar

ClipFn = Callable[[float], Any]
"""clip_fn(max_norm) -> total norm before clipping: scales all gradients so that their norm is at most max_norm."""


def check_clip_fn(mode: str, scope: str, loss_scale: float | Tensor | None = None) -> None:
    """Raise a ValueError if a clipper cannot leave clipping to a function."""
    if mode != "norm" or scope != "global" or loss_scale is not None:
        scale = f", loss_scale={loss_scale!r}" if loss_scale is not None else ""
        raise ValueError(
            f"clip_fn scales all gradients by their one norm, without a loss scale: it needs mode='norm' and "
            f"scope='global', got mode={mode!r}, scope={scope!r}{scale}"
        )


def norm_from(returned: Any) -> Norms:
    """The norm that a function returned; those of the single gradients are not known.

    Raises:
        TypeError: it returned something else.
    """
    if isinstance(returned, Tensor) and returned.numel() == 1:
        total = to_scalar(returned)
    elif isinstance(returned, int | float) and not isinstance(returned, bool):
        total = torch.tensor(float(returned), dtype=torch.float64, device="cpu")
    else:
        raise TypeError(
            f"clip_fn(max_norm) must return the total norm before clipping, got {returned!r}; where the engine clips "
            f"by itself, give it the threshold of an autoclip.Tuner() (DeepSpeed: "
            f"autoclip.integrations.deepspeed.attach)"
        )
    return Norms(total, torch.empty(0), float(total))  # host read


def shrink_further_(parameters: Mapping[str, Tensor], norm: Tensor, decision: Decision, limit: float) -> None:
    """Scale gradients that the function has clipped once more, if what is to be left was not known before.

    So it is under inclusive policies, and responses other than "scale". The function itself is not called again: some
    unscale the gradients as well, which can be done but once a step.

    Args:
        parameters: by name; their gradients are those that the function has left.
        norm: before the function clipped, 0-d.
        decision: on that norm.
        limit: that the function was given.
    """
    if not decision.clipped or not 0 < decision.clipped_norm < limit:
        return
    if limit == inf and decision.clipped_norm == decision.threshold:
        factor = clip_coefficient(norm, decision.clipped_norm)
    else:
        factor = torch.as_tensor(decision.clipped_norm / min(decision.norm, limit), device=norm.device)
    scale_(list(gradients_of(parameters).values()), factor)
