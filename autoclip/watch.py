"""Checks, in the first steps, that the gradients have the norm that clipping left them with."""

import weakref
from collections.abc import Callable
from functools import cache
from math import frexp, isfinite
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from autoclip.eager import eager

WATCHED_STEPS = 3
"""A check costs a norm of all gradients, and a mistake is there from the first step."""

Say = Callable[[str, str], None]
"""say(topic, message): warns."""


_WAITING: list["weakref.ref[Watch]"] = []
"""Watches that wait for an optimizer's step; neither they nor their clippers are kept alive."""


class Watch:
    """Checks the gradients of the first steps after they were clipped."""

    def __init__(self) -> None:
        self._looks = WATCHED_STEPS
        self._compare: Callable[[Optimizer], None] | None = None
        _hook_once()

    @property
    def is_open(self) -> bool:
        """Whether there is still something to check, or a check to end."""
        return self._looks > 0 or self._compare is not None

    def expect(self, parameter: Tensor, left: float, threshold: float, measure: Callable[[], float], say: Say) -> None:
        """Check when the optimizer that holds a parameter takes its next step, unless the gradient is another by then.

        Args:
            parameter: one of those whose gradients were clipped.
            left: norm that all gradients were left with.
            threshold: that they were clipped at.
            measure: their current norm.
            say: warns.
        """
        self._compare = None
        _WAITING[:] = [one for one in _WAITING if one() not in (None, self)]
        if self._looks == 0 or not isfinite(left) or left == 0 or parameter.grad is None:
            return
        self._looks -= 1
        gradient = weakref.ref(parameter.grad)

        def compare(optimizer: Optimizer) -> None:
            if not any(parameter is other for group in optimizer.param_groups for other in group["params"]):
                return
            self._compare = None
            if parameter.grad is gradient():
                _compare(left, threshold, measure(), getattr(optimizer, "grad_scale", None), say)

        self._compare = compare
        _WAITING.append(weakref.ref(self))

    @property
    def is_waiting(self) -> bool:
        """Whether the step to check has not come yet."""
        return self._compare is not None

    def compare(self, optimizer: Optimizer) -> None:
        """Check the gradients of this optimizer, if its step is the one that is waited for."""
        if self._compare is not None:
            self._compare(optimizer)

    def check(self, limit: float, measure: Callable[[], float], say: Say) -> None:
        """Check now: gradients that somebody else's function should have clipped, all or a part of them.

        Args:
            limit: norm that they should be left with.
            measure: norm of those at hand.
            say: warns.
        """
        if self._looks == 0:
            return
        self._looks -= 1
        norm = measure()
        if norm > 1.01 * limit:
            say(
                "unclipped",
                f"clip_fn was to leave a norm of {limit:.4g}, but the gradients have {norm:.4g}: it clips others than "
                f"those of this Clipper, or none, or they still carry the scale of a GradScaler (call unscale_ first)",
            )


@cache
def _hook_once() -> None:
    """Have every optimizer of the process call `_before_step`, from the first clipper on.

    The hook stays for good: torch goes through these hooks while they are called, and other threads may be in a step.
    """
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, _: Any, __: Any) -> None:
    if _WAITING:  # otherwise a compiled step stays in one piece
        _look(optimizer)


@eager
def _look(optimizer: Optimizer) -> None:
    for waiting in tuple(_WAITING):
        watch = waiting()
        if watch is not None:
            watch.compare(optimizer)
    _WAITING[:] = [one for one in _WAITING if (watch := one()) is not None and watch.is_waiting]


def _compare(left: float, threshold: float, norm: float, scale: Tensor | None, say: Say) -> None:
    factor = float(scale) if scale is not None else left / norm if norm > 0 else 1.0
    # The scales of a GradScaler are powers of two, except for the rounding of the norms.
    if factor > 1.5 and abs(frexp(factor * (1 + 1e-4))[0] - 0.5) < 1e-3:
        say(
            "scaled",
            f"the gradients were clipped before they were divided by {factor:.0f}, which is what a GradScaler does, so "
            f"that far too much is clipped: call scaler.unscale_(optimizer) before step(), or let "
            f"autoclip.attach(optimizer) do the clipping",
        )
    elif norm > 1.01 * threshold:
        say(
            "unclipped",
            f"the gradients have a norm of {norm:.4g} in optimizer.step(), after they were clipped at {threshold:.4g}: "
            f"something changes them in between; call step() after it",
        )
