"""The steps of a clipper: measure, decide, clip, learn, record."""

from collections.abc import Collection, Mapping
from math import inf, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from autoclip.claims import Claim
from autoclip.clipping import ClipFn, Clipped, arrived, clip, clip_with, measure_all, name_nonfinite
from autoclip.gate import Gate
from autoclip.gradients import (
    LeftGradients,
    Norms,
    clip_coefficient,
    live_gradients,
    measure_plain,
    mixed_gradients,
    plain_gradients,
    scale_,
)
from autoclip.groups import Groups
from autoclip.late_steps import LateSteps
from autoclip.losses import ProcessGroup, ReportedLosses, StepLoss, process_group
from autoclip.policies import NoClip
from autoclip.policies.policy import ALL
from autoclip.shares import Share
from autoclip.step_log import StepLog
from autoclip.watch import Watch

NO_LOSS = StepLoss(None, None, {})
FOREIGN = 0.01
"""Relative error that somebody else's clipping may make in the norm that it leaves."""


class Steps:
    """What a clipper does in each step, and what it has to remember for the next.

    Args:
        groups: the parameters, and a policy for each group.
        late: which steps do without a host wait.
        log: gets every step.
        mode: "norm", "value" or "agc".
        norm_type: order of the norm.
        on_nonfinite: "skip", "propagate" or "raise".
        ranks: over which a loss is averaged, see `Clipper`.
    """

    def __init__(
        self,
        groups: Groups,
        late: LateSteps,
        log: StepLog,
        *,
        mode: str,
        norm_type: float,
        on_nonfinite: str,
        ranks: ProcessGroup | Literal["world"] | None,
    ) -> None:
        self.groups, self.late, self.log = groups, late, log
        self.mode, self.norm_type, self.on_nonfinite, self.ranks = mode, norm_type, on_nonfinite, ranks
        self.losses = ReportedLosses()
        simple = groups.scope == "global" and mode == "norm" and groups.policy.warmup_total is None
        gate = groups.gates[ALL] if simple else None
        self._plain = gate if gate is not None and gate.response == "scale" else None
        self._claims = not isinstance(groups.policy, NoClip)  # a clipper that only watches disturbs nobody
        self.measured: tuple[Collection[str], Tensor] | None = None
        self._left: LeftGradients | None = None
        self._claim, self._watch = Claim(), Watch()

    def take(self, loss: float | Tensor | None, clip_fn: ClipFn | None, loss_scale: float | Tensor | None) -> Tensor:
        """Take one step; the arguments are those of `Clipper.step`."""
        capturing = late = False
        may_be_late = not self.late.never(self.groups)
        if may_be_late:
            capturing = self.late.is_captured(self.groups)
            if not capturing:
                self.settle()
        self.groups.read_added()
        if may_be_late:
            late = clip_fn is None and self.late.is_next(self.groups, capturing)
        if not late and self.late.leaves_out():
            self.losses.forget()
            return torch.tensor(inf)
        own = loss if loss is not None else self.losses.mean()
        # With or without a loss, a process group of the user's own is checked for this rank.
        nothing = own is None and (self.ranks is None or self.ranks == "world")
        pending = NO_LOSS if nothing else StepLoss(own, self.ranks, self.groups.parameters)
        self.losses.forget()
        if clip_fn is not None:
            return self._step_by(clip_fn, pending, loss_scale)
        plain = plain_gradients(self.groups.parameters)
        usual = loss_scale is None and not may_be_late and not self._is_watched
        if usual and self._plain is not None and plain is not None:
            total = self._take_plain(self._plain, *plain, pending)
            if total is not None:
                return total
        gradients = dict(zip(*plain, strict=True)) if plain is not None else mixed_gradients(self.groups.parameters)
        if late:
            total = self._take_late(gradients, loss_scale, pending, capturing=capturing)
            if total is not None:
                return total
        return self._take_waiting(gradients, loss_scale, pending, late=late, may_be_late=may_be_late)

    def _take_late(
        self, gradients: Mapping[str, Tensor], loss_scale: float | Tensor | None, pending: StepLoss, *, capturing: bool
    ) -> Tensor | None:
        """A step whose norm is read at the next step. None: nothing was done, and the step has to wait."""
        tensors = list(gradients.values())
        if not tensors or (self._left and self._left.are_same(tensors)):
            return None
        total = self.late.clip(self.groups, gradients, self.norm_type, loss_scale, pending)
        if total is None:
            if capturing:
                raise self.late.not_capturable()
            return None
        self._left = LeftGradients(tensors, total, None, skipped=False)
        if not capturing:
            self.log.announce()
        return total

    def _take_waiting(
        self,
        gradients: Mapping[str, Tensor],
        loss_scale: float | Tensor | None,
        pending: StepLoss,
        *,
        late: bool,
        may_be_late: bool,
    ) -> Tensor:
        """A step of any kind whose norm the host waits for.

        Args:
            gradients: by parameter name.
            loss_scale: that they still carry; None: they carry none.
            pending: the loss.
            late: the step was meant not to wait.
            may_be_late: later ones may do without a wait.
        """
        tensors = list(gradients.values())
        norms = measure_all(self.groups, gradients, self.mode, self.norm_type, loss_scale)
        if self._left is not None and self._left.is_still(tensors, norms.value):
            if late and not isfinite(norms.value) and self.on_nonfinite == "skip":
                self.groups.remove_gradients()  # the optimizer was to leave out one step, not two
            return self._repeated(self._left)
        if not tensors:
            self.log.notices.say(
                "empty", "no parameter has a gradient: call step() after backward() and before zero_grad()"
            )
        finite = isfinite(norms.value)
        if not finite:
            if loss_scale is not None:
                return norms.total
            self.log.meet_nonfinite(name_nonfinite(list(gradients), norms.each), self.on_nonfinite)
        if self._claim.is_contested(tensors):
            self.log.notices.say(
                "contested",
                "another clipper has clipped these gradients already, so that this one learns from norms that are not "
                "those of training: keep one of them (detach() removes an attached one)",
            )
        mean = pending.read()
        if may_be_late:
            self.late.prepare(self.groups, gradients)
        self.measured = (list(gradients), norms.each)
        watched = self._watch.is_open and loss_scale is None and self.late.fused is None
        shares = self.groups.decide(self.groups.measured(gradients, norms, self.norm_type), mean)
        clipped = self._clip(shares, gradients, norms)
        if watched and clipped.kept:
            first = self.groups.parameters[next(iter(gradients))]
            self._watch.expect(
                first, norms.value * clipped.coefficient, clipped.threshold, self.norm_now, self.log.notices.say
            )
        return self._finish(clipped, mean)

    def _take_plain(
        self, gate: Gate, names: Collection[str], gradients: list[Tensor], pending: StepLoss
    ) -> Tensor | None:
        """The usual step: one group, whose gradients are scaled down if their norm is above the threshold.

        The same as the general step, without what only the others need. None: this step is another kind.
        """
        norms = measure_plain(gradients, self.norm_type)
        if norms is None:
            return None
        if self._left is not None and self._left.is_still(gradients, norms.value):
            return self._repeated(self._left)
        loss = pending.read()
        self.measured = (names, norms.each)
        decision = gate.decide(norms.value, loss)
        coefficient = 1.0
        if decision.clipped:
            coefficient = scale_(gradients, clip_coefficient(norms.total, decision.threshold), alike=True)
        self._left = LeftGradients(gradients, norms.total, norms.value * coefficient, skipped=False)
        self.log.add(
            {ALL: decision},
            decision.phase,
            norms.value,
            decision.threshold,
            coefficient,
            decision.clipped,
            skipped=False,
            loss=loss,
        )
        return norms.total

    @property
    def _is_watched(self) -> bool:
        """Whether this is one of the first steps, which are checked for mistakes."""
        return self._claim.is_open or (self._watch.is_open and self.late.fused is None)

    def settle(self) -> None:
        """Learn from the latest step and record it, if that was not done yet."""
        step, self.late.pending = self.late.pending, None
        if step is None or (numbers := step.arrive()) is None:
            return
        norms, factor = numbers
        if not isfinite(norms.total):
            self.log.meet_nonfinite(name_nonfinite(norms.names, step.each), self.on_nonfinite)
        loss = step.loss()
        shares = self.groups.decide(norms, loss)
        clipped = arrived(self.groups, shares, norms, factor, self.norm_type, skip=self.on_nonfinite == "skip")
        self.measured = (step.done.names, step.each)
        if self._left is not None:
            self._left.norm = clipped.left
        self._record(clipped, loss)

    def replay(self, graph: Any) -> None:
        """Replay a graph in which a step was captured, at the current thresholds."""
        self.settle()
        if self.losses.count:
            self.losses.forget()
            self.log.notices.say("unused", "report_loss() was called outside the captured step, where it has no effect")
        self.late.replay(graph, self.groups)
        self._left = None
        self.log.announce()

    def again(self, loss_scale: float | Tensor | None) -> Tensor:
        """Clip gradients that were computed again within the latest step, at its thresholds."""
        self.settle()
        gradients = live_gradients(self.groups.parameters)
        norms = measure_all(self.groups, gradients, self.mode, self.norm_type, loss_scale)
        if isfinite(norms.value):
            measured = self.groups.measured(gradients, norms, self.norm_type)
            shares = self.groups.decide_as(self.log.decisions, measured)
            self._keep(self._clip(shares, gradients, norms))
        return norms.total

    def norm_now(self) -> float:
        """Total norm of the gradients as they are."""
        gradients = live_gradients(self.groups.parameters)
        return measure_all(self.groups, gradients, self.mode, self.norm_type, None).value

    def begin_anew(self) -> None:
        """Forget what belongs to earlier steps, because another state was loaded."""
        self.measured = self._left = None
        self.losses.forget()

    def __getstate__(self) -> dict[str, Any]:
        # Weak references to gradients and hooks of an optimizer cannot be pickled, and mean nothing elsewhere.
        self.settle()
        return {**vars(self), "_left": None, "_claim": Claim(), "_watch": Watch(), "late": self.late.fresh()}

    def _step_by(self, clip_fn: ClipFn, pending: StepLoss, loss_scale: float | Tensor | None) -> Tensor:
        """The step where somebody else's function clips."""
        if self.mode != "norm" or self.groups.scope != "global" or loss_scale is not None:
            raise ValueError(
                f"clip_fn scales all gradients by their one norm, without a loss scale: it needs mode='norm' and "
                f"scope='global', got mode={self.mode!r}, scope={self.groups.scope!r}, loss_scale={loss_scale!r}"
            )
        live = list(live_gradients(self.groups.parameters).values())
        # A rank does not see the shards of the others, and all of them have to clip together.
        alone = process_group("world") is None
        left = self._left
        if alone and left is not None and left.are_same(live) and left.is_still(live, self.norm_now(), FOREIGN):
            return self._repeated(left)
        loss: list[float | None] = []

        def read_loss() -> float | None:
            loss.append(pending.read())
            return loss[0]

        def meet_nonfinite() -> None:
            self.log.meet_nonfinite("the norm that clip_fn returned", self.on_nonfinite)

        clipped = clip_with(clip_fn, self.groups, live, read_loss, meet_nonfinite, skip=self.on_nonfinite == "skip")
        self.measured = None
        if clipped.coefficient < 1 and clipped.kept:
            self._watch.check(clipped.value * clipped.coefficient, self.norm_now, self.log.notices.say)
        return self._finish(clipped, loss[0])

    def _clip(self, shares: list[Share], gradients: Mapping[str, Tensor], norms: Norms) -> Clipped:
        skip = self.on_nonfinite == "skip"
        return clip(self.groups, shares, gradients, norms, self.mode, self.norm_type, skip=skip)

    def _keep(self, clipped: Clipped) -> None:
        self._left = LeftGradients(clipped.kept, clipped.total, clipped.left, skipped=clipped.skipped)
        self._claim.mark(clipped.kept if self._claims else ())

    def _finish(self, clipped: Clipped, loss: float | None) -> Tensor:
        """Remember and record a step."""
        self._keep(clipped)
        self._record(clipped, loss)
        return clipped.total

    def _record(self, clipped: Clipped, loss: float | None) -> None:
        self.log.add(
            clipped.decisions,
            self.groups.phase(clipped.shares),
            clipped.value,
            clipped.threshold,
            clipped.coefficient,
            clipped.clipped,
            clipped.skipped,
            loss,
        )

    def _repeated(self, left: LeftGradients) -> Tensor:
        self.log.notices.say(
            "repeat",
            "step() was called again on the same gradients: nothing was clipped or learned anew; where that was meant "
            "to be a new step, call zero_grad() and backward() before it",
        )
        return left.total_norm
