"""Looks, in the first steps, whether gradients have the norm that they should have after clipping."""

import weakref
from collections.abc import Callable
from math import frexp, isfinite
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from autoclip.eager import eager

WATCHED_STEPS = 3
"""A look costs a norm of all gradients; what is wrong is wrong from the beginning."""

Say = Callable[[str, str], None]
"""say(topic, message): warns."""


_WAITING: list[tuple[Any, Any]] = []
"""Weak reference to a watch, and the handle of its hook, which is removed when another watch begins to wait."""


class Watch:
    """Looks at the gradients of the first steps after they were clipped."""

    def __init__(self) -> None:
        self._left = WATCHED_STEPS
        self._handle: Any = None
        self._compare: Callable[[Optimizer], None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is still something to look at, or to be ended."""
        return self._left > 0 or self._handle is not None

    def expect(self, parameter: Tensor, left: float, threshold: float, measure: Callable[[], float], say: Say) -> None:
        """Look when the optimizer that holds a parameter takes its next step.

        Args:
            parameter: one of those whose gradients were clipped.
            left: norm that all gradients were left with.
            threshold: that they were clipped at.
            measure: their norm now.
            say: warns.
        """
        self._stop()
        if self._left == 0 or not isfinite(left) or left == 0:
            return
        self._left -= 1

        def compare(optimizer: Optimizer) -> None:
            if any(parameter is other for group in optimizer.param_groups for other in group["params"]):
                self._compare = None
                _compare(left, threshold, measure(), getattr(optimizer, "grad_scale", None), say)

        self._compare = compare
        for waiting in [one for one in _WAITING if one[0]() is None]:
            waiting[1].remove()
            _WAITING.remove(waiting)
        self._handle = register_optimizer_step_pre_hook(_Look(self))
        _WAITING.append((weakref.ref(self), self._handle))

    def compare(self, optimizer: Optimizer) -> None:
        """Look at the gradients of this optimizer, if its step is the one that is waited for."""
        if self._compare is not None:
            self._compare(optimizer)

    def _stop(self) -> None:
        # Not as soon as a look is done: hooks cannot be removed while they are called.
        if self._handle is not None:
            self._handle.remove()
            _WAITING[:] = [one for one in _WAITING if one[1] is not self._handle]
        self._handle = self._compare = None

    def check(self, limit: float, measure: Callable[[], float], say: Say) -> None:
        """Look now, at gradients that somebody else's function was to clip, all or a part of them.

        Args:
            limit: norm that they were to be left with.
            measure: norm of those at hand.
            say: warns.
        """
        if self._left == 0:
            return
        self._left -= 1
        norm = measure()
        if norm > 1.01 * limit:
            say(
                "unclipped",
                f"clip_fn was to leave a norm of {limit:.4g}, but the gradients have {norm:.4g}: it clips others than "
                f"those of this Clipper, or none, or they still carry the scale of a GradScaler (call unscale_ first)",
            )


class _Look:
    """A hook of all optimizers, which keeps neither the clipper nor its parameters alive."""

    def __init__(self, watch: Watch) -> None:
        self._watch = weakref.ref(watch)

    @eager
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        watch = self._watch()
        if watch is not None:
            watch.compare(optimizer)


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
