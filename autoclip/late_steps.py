"""Which steps of a clipper do not wait for their norm, and the one whose norm has not arrived yet."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from autoclip.fused_optimizer import FusedOptimizer
from autoclip.groups import Groups
from autoclip.host_copy import HostCopy
from autoclip.late import CapturedStep, HeldLimits, LateStep, Layout, Limits, clip_on_device, not_finite
from autoclip.losses import StepLoss
from autoclip.watch import WATCHED_STEPS


class LateSteps:
    """The steps of a clipper that do not wait: whether the next is one, and the one whose norm has not arrived yet.

    The first three steps of a clipper wait, so that mistakes which show at once (gradients that are still scaled, a
    second clipper) are told at once.

    Args:
        wait: True: every step waits. False: the first three wait. "auto": as False for parameters on a CUDA device, if
            no choice of the clipper needs the norm in its own step.
        obstacle: why a step has to wait, see `why_wait`; None: it does not.
        skips: steps whose norm is not finite are to have no effect.

    Raises:
        ValueError: `wait` is False and there is an obstacle.
    """

    def __init__(self, wait: bool | Literal["auto"], obstacle: str | None, *, skips: bool) -> None:
        if not isinstance(wait, bool) and wait != "auto":
            raise ValueError(f"host_wait must be True, False or 'auto', got {wait!r}")
        if wait is False and obstacle is not None:
            raise ValueError(f"host_wait=False: {obstacle}")
        self.fused: FusedOptimizer | None = None
        self.pending: LateStep | None = None
        self._unreplayed: CapturedStep | None = None
        self._captured: WeakKeyDictionary[Any, CapturedStep] | None = None  # by graph; it cannot be pickled
        self.first = WATCHED_STEPS
        self._wait = True if obstacle is not None else wait
        self._skips = skips
        self._layout: Layout | None = None
        self._held: HeldLimits | None = None

    def never(self, groups: Groups) -> bool:
        """Whether no step is late, as nearly always on a CPU: nothing is under way or captured."""
        return self.pending is None and self._wait is not False and not _parameter(groups).is_cuda

    def is_next(self, groups: Groups, captured: bool) -> bool:
        """Whether the next step is late.

        Args:
            groups: the clipper's.
            captured: it goes into a CUDA graph.

        Raises:
            ValueError: as in `check`.
            RuntimeError: this one has to wait, which a graph that is being captured cannot.
        """
        late = self._wait is not True and self._may_be_late(groups)
        if captured and not late:
            raise self.not_capturable()
        return late

    def not_capturable(self) -> RuntimeError:
        """The error for a step that has to wait, but is captured."""
        return RuntimeError(
            "a step that is captured in a CUDA graph cannot wait for its norm: take three steps before, attach to an "
            "optimizer with fused=True (or choose on_nonfinite='propagate'), and see docs/gpu.md"
        )

    def is_captured(self, groups: Groups) -> bool:
        """Whether the current work goes into a CUDA graph."""
        return _parameter(groups).is_cuda and torch.cuda.is_current_stream_capturing()

    def leaves_out(self) -> bool:
        """Whether a scaler has found an overflow, and will leave the next step out."""
        overflow = self.fused.overflow if self.fused is not None else None
        return overflow is not None and float(overflow) != 0  # host read

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
        thresholds = [groups.gates[group].policy.threshold() for group in step.done.members]
        self.pending = step.replay(graph, thresholds)

    def detach(self) -> None:
        """Leave the optimizer alone."""
        if self.fused is not None:
            self.fused.forget()
        self.fused = None

    def fresh(self) -> "LateSteps":
        """The same choices, nothing under way."""
        return LateSteps(self._wait, None, skips=self._skips)

    def check(self) -> None:
        """Raise if no step may wait, but nothing could leave out a step that is not finite.

        Raises:
            ValueError: that is so.
        """
        if self._wait is False and self._skips and not self._leaves_out_on_device():
            raise ValueError(
                "host_wait=False: with on_nonfinite='skip' only autoclip.attach() on an optimizer of torch with "
                "fused=True can leave out a step that the host has not seen; use that, or on_nonfinite='propagate'"
            )

    def prepare(self, groups: Groups, gradients: Mapping[str, Tensor]) -> None:
        """After a step that waited, make on the device what the next may need but must not make during a capture."""
        self.first = max(self.first - 1, 0)
        if self._wait is not True and gradients:
            self._arrange(groups.members(list(gradients)), next(iter(gradients.values())))

    def _arrange(self, members: Mapping[str, Sequence[int]], like: Tensor) -> None:
        if self._layout is None or self._layout.members is not members or self._layout.device != like.device:
            self._layout, self._held = Layout(members, like), HeldLimits(len(members), like)

    def _may_be_late(self, groups: Groups) -> bool:
        if self._wait == "auto" and not _parameter(groups).is_cuda:
            return False
        self.check()
        if self._skips and not self._leaves_out_on_device():
            return False
        return self.first == 0 and (not self._skips or self.fused is None or self.fused.can_leave_out)

    def _leaves_out_on_device(self) -> bool:
        return self.fused is not None and self.fused.is_fused

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
        if captured and (self._layout is None or self._layout.members is not members):
            return None  # other gradients than in the steps before
        if captured and self._unreplayed is not None:
            raise RuntimeError("replay each graph once, by clipper.replay(graph), before the next is captured")
        self._arrange(members, first)
        layout, held = cast(Layout, self._layout), cast(HeldLimits, self._held)
        gates = [groups.gates[group] for group in members]
        if any(gate.policy.inclusive for gate in gates):
            return None
        if groups.warmup_total is not None and any(gate.policy.phase == "warmup" for gate in gates):
            return None
        limits = held if captured else Limits([gate.policy.threshold() for gate in gates], first)
        overflow = self.fused.overflow if self.fused is not None else None
        done = clip_on_device(gradients, layout, limits, order, scale=scale, overflow=overflow)
        loss.join()
        if self._skips and self.fused is not None:
            self.fused.leave_out(not_finite(done.total))
        if captured:
            self._unreplayed = CapturedStep(done, held, loss.send)
        else:
            self.pending = LateStep(done, HostCopy(done.numbers), loss.send())
        return done.total


def _parameter(groups: Groups) -> Tensor:
    return next(iter(groups.parameters.values()))
