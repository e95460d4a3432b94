"""The steps of a clipper: measure, decide, clip, learn, record."""

from collections.abc import Collection, Mapping
from math import inf, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from autoclip.claims import Claim
from autoclip.clip_function import ClipFn, clip_with
from autoclip.gate import Decision
from autoclip.gradients import LeftGradients, live_gradients
from autoclip.groups import Groups
from autoclip.late_steps import LateSteps
from autoclip.losses import ProcessGroup, ReportedLosses, StepLoss, process_group
from autoclip.measured import Measured, allowed_norm, coefficient_of, measure_all, name_nonfinite, shrink_
from autoclip.policies import NoClip
from autoclip.policies.policy import ALL
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
        self._claims = not isinstance(groups.policy, NoClip)  # a clipper that only watches disturbs nobody
        self.latest_norms: tuple[Collection[str], Tensor] | None = None
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
        gradients = live_gradients(self.groups.parameters)
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
        norms = measure_all(gradients, self.groups.parameters, self.mode, self.norm_type, loss_scale)
        if self._left is not None and self._left.is_still(tensors, norms.value):
            if late and not isfinite(norms.value) and self.on_nonfinite == "skip":
                self.groups.remove_gradients()  # the optimizer was to leave out one step, not two
            return self._repeated(self._left)
        if not tensors:
            self.log.notices.say(
                "empty", "no parameter has a gradient: call step() after backward() and before zero_grad()"
            )
        if not isfinite(norms.value):
            if loss_scale is not None:
                return norms.total
            self.log.meet_nonfinite(name_nonfinite(gradients, norms.each), self.on_nonfinite)
        if self._claim.is_open and self._claim.is_contested(tensors):
            self.log.notices.say(
                "contested",
                "another clipper has clipped these gradients already, so that this one learns from norms that are not "
                "those of training: keep one of them (detach() removes an attached one)",
            )
        loss = pending.read()
        if may_be_late:
            self.late.prepare(self.groups, gradients)
        self.latest_norms = (list(gradients), norms.each)
        watched = self._watch.is_open and loss_scale is None and self.late.fused is None
        measured = self.groups.measured(gradients, norms, self.norm_type)
        decisions = self.groups.decide(measured.values, norms.value, loss)
        coefficient, kept = self._shrink(measured, decisions)
        skipped = bool(tensors) and not kept
        threshold = self._record(decisions, norms.value, coefficient, skipped, loss)
        if watched and kept:
            first = self.groups.parameters[next(iter(gradients))]
            self._watch.expect(first, norms.value * coefficient, threshold, self.norm_now, self.log.notices.say)
        return norms.total

    def _shrink(self, measured: Measured, decisions: Mapping[str, Decision]) -> tuple[float, list[Tensor]]:
        """Carry out the decisions; returns the share of the norm that is left, and the gradients that are."""
        norm = measured.all.value
        kept = list(measured.gradients.values())
        if not isfinite(norm) and self.on_nonfinite == "skip":
            self.groups.remove_gradients()
            coefficient, kept = 0.0, []
        else:
            removed, factor = shrink_(measured, decisions, self.groups.parameters, self.mode)
            if removed:
                self.groups.remove_gradients(removed)
                kept = self.groups.kept(measured.gradients, removed)
            if factor is None:
                factor = coefficient_of(decisions.values(), norm, self.mode, self.norm_type)
            coefficient = factor
        self._keep(kept, measured.all.total, norm * coefficient, skipped=bool(measured.gradients) and not kept)
        return coefficient, kept

    def settle(self) -> None:
        """Learn from the latest step and record it, if that was not done yet."""
        step, self.late.pending = self.late.pending, None
        if step is None or (numbers := step.arrive()) is None:
            return
        norms, total, coefficient = numbers
        if not isfinite(total):
            self.log.meet_nonfinite(name_nonfinite(step.done.names, step.each), self.on_nonfinite)
        loss = step.loss()
        decisions = self.groups.decide(norms, total, loss)
        skipped = self.on_nonfinite == "skip" and not isfinite(total)
        if skipped:
            coefficient = 0.0
        elif len(decisions) > 1:
            coefficient = coefficient_of(decisions.values(), total, "norm", self.norm_type)
        self.latest_norms = (step.done.names, step.each)
        if self._left is not None:
            self._left.norm = total * coefficient
        self._record(decisions, total, coefficient, skipped, loss)

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
        norms = measure_all(gradients, self.groups.parameters, self.mode, self.norm_type, loss_scale)
        if isfinite(norms.value):
            measured = self.groups.measured(gradients, norms, self.norm_type)
            self._shrink(measured, self.groups.decide_as(self.log.decisions, measured.values, norms.value))
        return norms.total

    def norm_now(self) -> float:
        """Total norm of the gradients as they are."""
        gradients = live_gradients(self.groups.parameters)
        return measure_all(gradients, self.groups.parameters, self.mode, self.norm_type, None).value

    def begin_anew(self) -> None:
        """Forget what belongs to earlier steps, because another state was loaded."""
        self.latest_norms = self._left = None
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

        total, decision, coefficient, skipped = clip_with(
            clip_fn, self.groups, read_loss, meet_nonfinite, skip=self.on_nonfinite == "skip"
        )
        self.latest_norms = None
        if coefficient < 1 and not skipped:
            self._watch.check(decision.norm * coefficient, self.norm_now, self.log.notices.say)
        self._keep([] if skipped else live, total, decision.norm * coefficient, skipped=skipped)
        self._record({ALL: decision}, decision.norm, coefficient, skipped, loss[0])
        return total

    def _keep(self, gradients: list[Tensor], total: Tensor, left: float, *, skipped: bool) -> None:
        """Remember how the gradients were left."""
        self._left = LeftGradients(gradients, total, left, skipped)
        if self._claim.is_open:
            self._claim.mark(gradients if self._claims else ())

    def _record(
        self, decisions: dict[str, Decision], norm: float, coefficient: float, skipped: bool, loss: float | None
    ) -> float:
        """Record a step; returns the bound on the norm of all gradients together."""
        made = decisions.values()
        if len(made) == 1:
            (one,) = made
            phase, threshold, clipped = one.phase, one.threshold, one.clipped
        else:
            phase, clipped = self.groups.phase(made), any(one.clipped for one in made)
            threshold = allowed_norm(made, self.groups.warmup_total, self.norm_type)
        self.log.add(decisions, phase, norm, threshold, coefficient, clipped, skipped, loss)
        return threshold

    def _repeated(self, left: LeftGradients) -> Tensor:
        self.log.notices.say(
            "repeat",
            "step() was called again on the same gradients: nothing was clipped or learned anew; where that was meant "
            "to be a new step, call zero_grad() and backward() before it",
        )
        return left.total_norm
