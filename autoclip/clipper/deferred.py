"""Steps without a host wait: the device clips, and the clipper learns at the next step, when the norms have arrived."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from autoclip.clipper.checks import CHECKED_STEPS
from autoclip.clipper.found_inf import FoundInf
from autoclip.clipper.groups import Groups
from autoclip.clipper.losses import StepLoss
from autoclip.clipper.thresholds import Thresholds
from autoclip.controller import Controller
from autoclip.gradients import fast_norms, zero_
from autoclip.gradients.host import PinnedCopy, on_device
from autoclip.policies import Policy


def why_wait(policy: Policy, mode: str, response: str, on_nonfinite: str, rule: Controller | None) -> str | None:
    """Why a clipper with these choices needs the norm of a step in that step; None: it does not."""
    for one in [policy] if rule is None else [policy, rule.policy]:
        later = one.clone()
        later.observe(1.0)  # some count only their first norm
        if later.inclusive:
            return f"{type(one).__name__} counts the norm of a step before it sets the threshold of that step"
    if rule is not None and rule.judges_loss:
        return f"skip={rule.policy!r} looks at the loss of the step"
    if mode != "norm":
        return f"mode={mode!r} is not done without a look at the norm"
    if response != "scale":
        return f"response={response!r} decides by the norm of the step"
    if on_nonfinite == "raise":
        return "on_nonfinite='raise' has to see the norm before the optimizer's step"
    return None


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """The device's part of a step; a CUDA graph does it again with each replay, in the same memory.

    Attributes:
        names: of the parameters that have a gradient.
        thresholds: of the groups.
        total: norm of all gradients together before clipping, 0-d.
        numbers: what the host will read: the total, the factor of the first group, 1 if a scaler found an overflow,
            the norm of each group if there are several, and that of each gradient.
        scaled: the gradients carried the scale of a GradScaler.
        send_loss: begins to copy the loss to the host, and returns a function that reads it.
    """

    names: list[str]
    thresholds: Thresholds
    total: Tensor
    numbers: Tensor
    scaled: bool
    send_loss: Callable[[], Callable[[], float | None]]

    def send(self) -> "DeferredStep":
        """Begin to copy the numbers to the host."""
        return DeferredStep(
            self.names, list(self.thresholds.members), self.scaled, PinnedCopy(self.numbers), self.send_loss()
        )


def clip_on_device(
    gradients: Mapping[str, Tensor],
    thresholds: Thresholds,
    order: float,
    send_loss: Callable[[], Callable[[], float | None]],
    *,
    any_limit: bool = True,
    scale: Tensor | float | None = None,
    overflow: Tensor | None = None,
    zeroes: bool = False,
) -> DeviceStep:
    """Scale the gradients of each group down to its threshold, without a look at their norms from the host.

        factor = c / (norm + min(1e-6, c / 1000)) where norm > c, else 1

    Norms are taken in one pass in float32 (float64 for float64 gradients). Unlike in a step that waits, finite
    gradients whose squares overflow measure as infinite, and those whose squares underflow as too small. Gradients that
    carry a scale and are not finite are left as they are.

    Args:
        gradients: by parameter name, all on one device.
        thresholds: c of each group; inf: none.
        order: of the norm.
        send_loss: see `DeviceStep`.
        any_limit: False: all thresholds are inf.
        scale: that the gradients still carry; the norms are those without it.
        overflow: one element: not 0 if a scaler leaves the step out; None: there is no scaler.
        zeroes: gradients that carry no scale and are not finite become zeros.
    """
    each, _ = fast_norms(gradients, order)
    total = torch.linalg.vector_norm(each, order)
    if scale is not None:
        each, total = each / scale, total / scale
    norms = thresholds.norms(each, total, order)
    if any_limit:
        factors = thresholds.factors(norms)
        if scale is not None:
            factors = factors.masked_fill((total < inf).logical_not(), 1.0)
        thresholds.multiply_(list(gradients.values()), factors)
        factor = factors[0]
    else:
        factor = total.new_ones(())
    if zeroes and scale is None:
        zero_(list(gradients.values()), (total < inf).logical_not())
    found = total.new_zeros(()) if overflow is None else overflow.reshape(()).to(total.dtype)
    own = [norms] if len(thresholds.members) > 1 else []
    numbers = torch.cat([torch.stack([total, factor, found]), *own, each])
    return DeviceStep(list(gradients), thresholds, total, numbers, scale is not None, send_loss)


@dataclass(frozen=True, slots=True)
class DeferredStep:
    """A clipped step whose numbers are on their way to the host; the clipper learns when it reads them.

    Attributes:
        names: of the parameters that have a gradient.
        groups: names of their groups.
        scaled: the gradients carried the scale of a GradScaler.
        numbers: as of `DeviceStep`.
        loss: reads the loss of the step.
    """

    names: list[str]
    groups: list[str]
    scaled: bool
    numbers: PinnedCopy
    loss: Callable[[], float | None]

    def read(self) -> tuple[dict[str, float], float, float] | None:
        """Norm of each group, norm of all, and the factor of the first; waits. None: a scaler left the step out."""
        count = len(self.groups)
        total, factor, overflow = self.numbers.read(0, 3)
        if overflow or (self.scaled and not isfinite(total)):
            return None
        values = self.numbers.read(3, 3 + count) if count > 1 else [total]
        return dict(zip(self.groups, values, strict=True)), total, factor

    @property
    def each(self) -> Tensor:
        """Norm of each gradient before clipping, shape (n,), on the host."""
        return self.numbers.tensor()[-len(self.names) :]


class Deferred:
    """The steps of a clipper that do not wait: whether the next is one, and the one whose norm is still to be read.

    The first three steps wait, so that mistakes which show at once (gradients that are still scaled, a second clipper)
    are told at once.

    Args:
        wait: True: every step waits. False: the first three wait. "auto": as False for parameters on a CUDA device, if
            no choice of the clipper needs the norm in its own step.
        obstacle: why a step has to wait, see `why_wait`; None: it does not.
        on_nonfinite: as of the clipper.
        rule: says which steps are left out for their norm, if any.

    Raises:
        ValueError: `wait` is False and there is an obstacle.
    """

    def __init__(
        self, wait: bool | Literal["auto"], obstacle: str | None, on_nonfinite: str, rule: Controller | None
    ) -> None:
        if not isinstance(wait, bool) and wait != "auto":
            raise ValueError(f"host_wait must be True, False or 'auto', got {wait!r}")
        if wait is False and obstacle is not None:
            raise ValueError(f"host_wait=False: {obstacle}")
        self.found_inf: FoundInf | None = None
        self.pending: DeferredStep | None = None
        self.to_wait = CHECKED_STEPS  # steps that wait first
        self.wait = True if obstacle is not None else wait
        self._on_nonfinite, self._rule = on_nonfinite, rule
        self._skips = on_nonfinite == "skip" or rule is not None
        self._limit: Tensor | None = None  # norm above which the rule leaves a step out
        self._thresholds: Thresholds | None = None
        self._unreplayed: DeviceStep | None = None
        self._captured: WeakKeyDictionary[Any, DeviceStep] | None = None  # by graph; it cannot be pickled

    def fresh(self) -> "Deferred":
        """The same choices, nothing under way."""
        return Deferred(self.wait, None, self._on_nonfinite, self._rule)

    def is_next(self, groups: Groups, captured: bool) -> bool:
        """Return True if the next step does not wait; `captured`: it goes into a CUDA graph.

        Raises:
            ValueError: as in `check`.
            RuntimeError: this one has to wait, which a graph that is being captured cannot.
        """
        is_next = self.wait is False or (self.wait == "auto" and _parameter(groups).is_cuda)
        if is_next:
            self.check()
            is_next = self.to_wait == 0 and (not self._skips or self._can_skip())
        if captured and not is_next:
            raise self.not_capturable()
        return is_next

    def check(self) -> None:
        """Raise if no step may wait, but nothing could leave a step out.

        Raises:
            ValueError: that is so.
        """
        if self.wait is False and self._skips and (self.found_inf is None or not self.found_inf.is_fused):
            raise ValueError(
                "host_wait=False: with on_nonfinite='skip' or a skip rule only autoclip.attach() on an optimizer of "
                "torch with fused=True can leave out a step that the host has not seen; use that, or "
                "on_nonfinite='zero' without a rule"
            )

    def not_capturable(self) -> RuntimeError:
        """The error for a step that has to wait, but is captured."""
        return RuntimeError(
            "a step that is captured in a CUDA graph cannot wait for its norm: take three steps before, attach to an "
            "optimizer with fused=True (or choose on_nonfinite='zero'), and see docs/gpu.md"
        )

    def is_captured(self, groups: Groups) -> bool:
        """Return True if the current work goes into a CUDA graph."""
        return _parameter(groups).is_cuda and torch.cuda.is_current_stream_capturing()

    def detach(self) -> None:
        """Leave the optimizer alone."""
        if self.found_inf is not None:
            self.found_inf.forget()
        self.found_inf = None

    def prepare(self, groups: Groups, gradients: Mapping[str, Tensor]) -> None:
        """After a step that waited, make on the device what the next may need but must not make during a capture."""
        self.to_wait = max(self.to_wait - 1, 0)
        if self.wait is not True and gradients:
            self._on_device(groups.members(list(gradients)), next(iter(gradients.values())))

    def clip(
        self,
        groups: Groups,
        gradients: Mapping[str, Tensor],
        order: float,
        scale: Tensor | float | None,
        loss: StepLoss,
    ) -> Tensor | None:
        """Clip on the device, and begin to copy what it measures.

        Args:
            groups: the clipper's.
            gradients: by parameter name.
            order: of the norm.
            scale: that the gradients still carry; None: they carry none.
            loss: of the step.

        Returns:
            The total norm, 0-d. None: nothing was done, and the step has to wait after all: the gradients are on
            several devices, or a policy counts its first norm before it sets a threshold, or bounds the norm of all
            groups together in its warm-up.
        """
        first = next(iter(gradients.values()))
        if {*map(Tensor.get_device, gradients.values())} != {first.get_device()}:
            return None
        if not isinstance(scale, Tensor) and scale is not None and not 0 < scale < inf:
            raise ValueError(f"loss_scale must be finite and > 0, got {scale}")
        captured = self.is_captured(groups)
        members = groups.members(list(gradients))
        if captured and (self._thresholds is None or self._thresholds.members is not members):
            return None  # other gradients than in the steps before
        if captured and self._unreplayed is not None:
            raise RuntimeError("replay each graph once, by clipper.replay(graph), before the next is captured")
        policies = [groups.controllers[group].policy for group in members]
        if any(one.inclusive or (one.phase == "warmup" and one.warmup_total is not None) for one in policies):
            return None
        thresholds = self._on_device(members, first)
        any_limit = captured
        if not captured:
            values = [one.threshold() for one in policies]
            if any_limit := min(values) < inf:
                thresholds.write(values)
        overflow = self.found_inf.overflow if self.found_inf is not None else None
        zeroes = self._on_nonfinite == "zero"
        done = clip_on_device(
            gradients, thresholds, order, loss.send, any_limit=any_limit, scale=scale, overflow=overflow, zeroes=zeroes
        )
        loss.join()
        if self._skips and self.found_inf is not None:
            out = (done.total < inf).logical_not()
            if self._rule is not None and self._limit is not None:
                if not captured:
                    _write_limit(self._rule, self._limit)
                above = done.total > self._limit
                out = out | above if self._on_nonfinite == "skip" else above & out.logical_not()
            self.found_inf.skip_step(out.float())
        if captured:
            self._unreplayed = done
        else:
            self.pending = done.send()
        return done.total

    def replay(self, graph: Any, groups: Groups) -> None:
        """Replay a graph at the current thresholds.

        Raises:
            RuntimeError: no step was captured.
        """
        if self._captured is None:
            self._captured = WeakKeyDictionary()
        step = self._captured.get(graph)
        if step is None:
            step, self._unreplayed = self._unreplayed, None
            if step is None:
                raise RuntimeError(
                    "no step was captured in this graph: call step() within torch.cuda.graph(graph), and use a new "
                    "graph for another capture"
                )
            self._captured[graph] = step
        step.thresholds.write([groups.controllers[group].policy.threshold() for group in step.thresholds.members])
        if self._rule is not None and self._limit is not None:
            _write_limit(self._rule, self._limit)
        graph.replay()
        self.pending = step.send()

    def _on_device(self, members: Mapping[str, Sequence[int]], like: Tensor) -> Thresholds:
        if (
            self._thresholds is None
            or self._thresholds.members is not members
            or self._thresholds.device != like.device
        ):
            self._thresholds = Thresholds(members, like)
        if self._rule is not None and (self._limit is None or self._limit.device != like.device):
            self._limit = torch.full((), inf, dtype=torch.float64, device=like.device)
        return self._thresholds

    def _can_skip(self) -> bool:
        return self.found_inf is not None and self.found_inf.can_skip


def _write_limit(rule: Controller, limit: Tensor) -> None:
    limit.copy_(on_device([rule.skips_above], limit)[0], non_blocking=True)


def _parameter(groups: Groups) -> Tensor:
    return next(iter(groups.parameters.values()))
