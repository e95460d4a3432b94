"""Checks of the gradients: a second call in the same step; and, in the first steps, others who clip or change them."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import frexp, inf, isclose, isfinite, isnan
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from autoclip.clipper.measured import measure_all
from autoclip.clipper.uncompiled import uncompiled
from autoclip.gradients import Norms
from autoclip.gradients.sharded import to_local
from autoclip.warn_once import WarnOnce

CHECKED_STEPS = 3
"""A check costs a norm of all gradients, and a mistake shows in the first step."""


class Mark:
    """Recognises the gradients of the latest step: the same memory, not written to since.

    It refers to the memory, not to the tensors: torch moves no model whose gradients have weak references. The memory
    may be freed.

    Args:
        gradients: as clipping left them; empty if they were removed.
        total: norm before clipping, 0-d.
        norm: that they were left with; None: not known yet.
        is_removal: the step was skipped.
    """

    __slots__ = ("_memory", "_place", "is_removal", "norm", "total")

    def __init__(self, gradients: list[Tensor], total: Tensor, norm: float | None, is_removal: bool = False) -> None:
        self.total, self.norm, self.is_removal = total, norm, is_removal
        self._memory: StorageWeakRef | None = None
        if gradients:
            storage, *self._place = _memory(gradients[0])
            self._memory = StorageWeakRef(storage)  # type: ignore[no-untyped-call]

    def is_on(self, gradient: Tensor) -> bool:
        """Return True if this is the first of the gradients, and nobody wrote to it since."""
        storage, *place = _memory(gradient)
        return self._memory is not None and self._memory.cdata == storage._cdata and self._place == place

    def fits(self, gradients: list[Tensor], norm: float, tolerance: float = 1e-6) -> bool:
        """Return True if these are the gradients as they were left.

        Args:
            gradients: the current ones.
            norm: of all of them.
            tolerance: of the norms, relative.
        """
        if not gradients or self._memory is None:
            return self.is_removal and not gradients
        if not self.is_on(gradients[0]):
            return False
        if self.norm is None:
            return True
        # Scaled gradients are rounded in their own precision.
        tolerance = max([tolerance, *(torch.finfo(dtype).eps for dtype in {gradient.dtype for gradient in gradients})])
        return isclose(self.norm, norm, rel_tol=tolerance) or (isnan(self.norm) and isnan(norm))


class Checks:
    """The checks of a clipper's first three steps, where a mistake in the loop shows at once.

    Before a step: has another clipper clipped the same gradients? At the optimizer's next step: are the gradients still
    as they were left, or did a `GradScaler` divide them, or did something make them larger?

    Args:
        mode: of the clipper.
        order: of the norm.
        warn_once: gives the warnings.
    """

    def __init__(self, mode: str, order: float, warn_once: WarnOnce) -> None:
        self.is_open = True
        self._mode, self._order, self._warn_once = mode, order, warn_once
        self._steps = 0
        self._own = object()  # stands for this clipper among those that marked gradients
        self._largest: list[tuple[float, int, float]] = []  # element, how many have its size, norm of all
        self._calls = self._replaced = 0  # of step() since the optimizer's; steps of it with other gradients
        self._threshold = inf
        self._left: dict[str, tuple[Tensor, float, StorageWeakRef]] = {}  # by name: parameter, norm, memory
        _hook_once()

    def fresh(self) -> "Checks":
        """The same checks, for a copy of the clipper."""
        return Checks(self._mode, self._order, self._warn_once)

    def before(self, gradients: list[Tensor], norm: float, by_hand: Iterable[Tensor] = ()) -> None:
        """Warn if somebody else has clipped these gradients, or will make them again.

        Args:
            gradients: before clipping.
            norm: of all of them.
            by_hand: the parameters, if the clipper is called by hand.
        """
        if any(getattr(one, "grad_sample", None) is not None for one in by_hand):
            self._warn_once(
                "samples",
                "the parameters have a grad_sample: opacus computes the gradients again in its optimizer's step, so "
                "that step() has no effect: use autoclip.attach(optimizer), which clips after that",
            )
        self._look_for_limited_elements(gradients, norm)
        for gradient in gradients:
            storage, offset, now = _memory(gradient)
            _, version, owner = _CLIPPED.get((storage._cdata, offset), (None, 0, self._own))
            if owner is not self._own and version == now:
                self._warn_once(
                    "contested",
                    "another clipper has clipped these gradients already, so that this one learns from norms that are "
                    "not those of training: keep one of them (detach() removes an attached one)",
                )
                return

    def _look_for_limited_elements(self, gradients: list[Tensor], norm: float) -> None:
        """Warn if several elements share the largest size, and it is the same in all of the first steps."""
        parts = [to_local(one) for one in gradients]
        parts = [one.abs() for one in parts if type(one) is Tensor and one.layout is torch.strided and one.numel()]
        if not parts or not isfinite(norm):
            return
        largest = max(float(one.max()) for one in parts)
        self._largest.append((largest, sum(int((one == largest).sum()) for one in parts), norm))
        sizes, counts, norms = zip(*self._largest, strict=True)
        if len(sizes) == CHECKED_STEPS and len({*sizes}) == 1 and min(counts) > 1 and len({*norms}) == CHECKED_STEPS:
            self._warn_once(
                "limited",
                f"in each of the first {CHECKED_STEPS} steps the largest gradient elements, {min(counts)} or more, are "
                f"{largest:.4g}: does something limit elements before, such as clip_grad_value_()? Remove it",
            )

    def after(self, left: Mapping[str, float], parameters: Mapping[str, Tensor], threshold: float) -> None:
        """Count a step, and expect that the optimizer finds the gradients as they are now.

        Args:
            left: norm of each gradient after clipping, by name; none: nothing is to be compared.
            parameters: by name.
            threshold: bound on the norm of all gradients.
        """
        self._count()
        self._left.clear()
        _WAITING[:] = [one for one in _WAITING if one() not in (None, self)]
        if all(map(isfinite, left.values())) and any(left.values()):
            self._calls += 1
            self._threshold = threshold
            for name, norm in left.items():
                gradient = parameters[name].grad
                assert gradient is not None
                self._left[name] = (parameters[name], norm, _reference(gradient))
            _WAITING.append(weakref.ref(self))

    def mark(self, gradients: Iterable[Tensor]) -> None:
        """Let other clippers see that these gradients were clipped."""
        for address, (memory, _, _) in list(_CLIPPED.items()):
            if memory.expired():  # type: ignore[no-untyped-call]
                _CLIPPED.pop(address, None)
        for gradient in gradients:
            memory, (_, offset, version) = _reference(gradient), _memory(gradient)
            _CLIPPED[memory.cdata, offset] = (memory, version, self._own)

    def after_clip_fn(self, limit: float, norm: Callable[[], float]) -> None:
        """Warn if somebody else's function was to leave a norm, but the gradients at hand have a larger one."""
        self._count()
        if limit < inf and (left := norm()) > 1.01 * limit:
            self._warn_once(
                "unclipped",
                f"clip_fn was to leave a norm of {limit:.4g}, but the gradients have {left:.4g}: it clips others than "
                f"those of this Clipper, or none, or they still carry the scale of a GradScaler (call unscale_ first)",
            )

    @property
    def is_waiting(self) -> bool:
        """True if the step of an optimizer is expected."""
        return bool(self._left)

    def compare(self, optimizer: Optimizer) -> None:
        """Look at those gradients that this optimizer is about to use; its step may write to them."""
        found, parameters, left, expected = dict[str, Tensor](), dict[str, Tensor](), list[float](), 0
        for name, (parameter, norm, memory) in self.forget(optimizer).items():
            expected += parameter.grad is not None
            if parameter.grad is not None and memory.cdata == _memory(parameter.grad)[0]._cdata:
                found[name], parameters[name] = parameter.grad, parameter
                left.append(norm)
        if expected and self._is_in_order(found=bool(found)):
            now = measure_all(found, parameters, self._mode, self._order, None)
            self._compare(now, left, getattr(optimizer, "grad_scale", None))

    def forget(self, optimizer: Optimizer) -> dict[str, tuple[Tensor, float, StorageWeakRef]]:
        """Expect nothing more of this optimizer's gradients; returns what was expected."""
        used = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        # A copy first: the optimizers of other threads look here too, and take nothing.
        expected = {name: one for name, one in tuple(self._left.items()) if id(one[0]) in used}
        for name in expected:
            self._left.pop(name, None)
        return expected

    def _is_in_order(self, *, found: bool) -> bool:
        """Return True if the gradients can be compared; warn if step() is called too often, or at the wrong place."""
        is_single = self._calls <= 1
        if not is_single:
            self._warn_once(
                "too often",
                f"step() was called {self._calls} times before this optimizer.step(), and each call counts as a step: "
                f"under accumulation call it once, after the last micro-batch",
            )
        self._calls, self._replaced = 0, 0 if found else self._replaced + 1
        if self._replaced == 2:
            self._warn_once(
                "too late",
                "optimizer.step() has other gradients than those that were clipped: call step() after backward() and "
                "before optimizer.step()",
            )
        return found and is_single

    def _compare(self, now: Norms, left: list[float], scale: Tensor | None) -> None:
        # One gradient tells the factor as well as all: the largest is the most exact.
        place = max(range(len(left)), key=left.__getitem__)
        norm = float(now.each[place])
        factor = float(scale) if scale is not None else left[place] / norm if norm > 0 else 1.0
        # The scales of a GradScaler are powers of two, except for the rounding of the norms.
        if factor > 1.5 and abs(frexp(factor * (1 + 1e-4))[0] - 0.5) < 1e-3:
            self._warn_once(
                "scaled",
                f"the gradients were clipped before they were divided by {factor:.0f}, which is what a GradScaler does,"
                f" so that far too much is clipped: call scaler.unscale_(optimizer) before step(), or let "
                f"autoclip.attach(optimizer) do the clipping",
            )
        elif now.value > 1.01 * self._threshold:
            self._warn_once(
                "unclipped",
                f"the gradients have a norm of {now.value:.4g} in optimizer.step(), after they were clipped at "
                f"{self._threshold:.4g}: something changes them in between; call step() after it",
            )

    def _count(self) -> None:
        self._steps += 1
        self.is_open = self._steps < CHECKED_STEPS


_CLIPPED: dict[tuple[int, int], tuple[StorageWeakRef, int, object]] = {}
"""Memory of a gradient, offset in it -> that memory, its version when it was clipped, and who clipped it."""

_WAITING: list["weakref.ref[Checks]"] = []
"""Checks that wait for an optimizer's step; neither they nor their clippers are kept alive."""


@cache
def _hook_once() -> None:
    """Let every optimizer of the process call the hooks below, from the first clipper on.

    They stay: torch goes through these hooks while it calls them, and other threads may be in a step.
    """
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


def _before_step(optimizer: Optimizer, _: Any, __: Any) -> None:
    if _WAITING:  # otherwise a compiled step stays in one piece
        _compare_waiting(optimizer)


def _after_step(optimizer: Optimizer, _: Any, __: Any) -> None:
    if _WAITING:  # a hook of the optimizer has called step()
        _compare_waiting(optimizer, is_over=True)


@uncompiled
def _compare_waiting(optimizer: Optimizer, *, is_over: bool = False) -> None:
    for waiting in tuple(_WAITING):
        if (checks := waiting()) is not None:
            if is_over:
                checks.forget(optimizer)
            else:
                checks.compare(optimizer)
    _WAITING[:] = [one for one in _WAITING if (checks := one()) is not None and checks.is_waiting]


def _memory(gradient: Tensor) -> tuple[Any, Any, int]:
    """Memory of what this rank holds of a gradient, its offset there, and a number that grows with each writing."""
    part = gradient if type(gradient) is Tensor else to_local(gradient)
    values = part._values() if part.is_sparse else part
    return values.untyped_storage(), values.storage_offset(), part._version


def _reference(gradient: Tensor) -> StorageWeakRef:
    return StorageWeakRef(_memory(gradient)[0])  # type: ignore[no-untyped-call]
