"""The steps of a clipper: measure, decide, clip, learn, record."""

from collections.abc import Mapping
from math import inf, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from autoclip.clipper.checks import Checks, Mark
from autoclip.clipper.clip_function import ClipFn, check_clip_fn, norm_from, shrink_further_
from autoclip.clipper.deferred import Deferred
from autoclip.clipper.groups import Groups
from autoclip.clipper.losses import Number, ProcessGroup, ReportedLosses, StepLoss, process_group
from autoclip.clipper.measured import (
    Measured,
    allowed_norm,
    coefficient_of,
    measure_all,
    name_nonfinite,
    norms_left,
    shrink_,
)
from autoclip.controller import Controller, Decision, SkippedBy
from autoclip.gradients import Norms, gradients_of, zero_
from autoclip.history import History
from autoclip.policies import NoClip
from autoclip.policies.policy import ALL

FOREIGN = 0.01
"""Relative error that somebody else's clipping may make in the norm that it leaves."""


class Step:
    """One step after another: measures, decides, clips, learns, and remembers what the next step needs.

    Args:
        groups: the parameters, and a policy for each group.
        deferred, history: the steps that do without a host wait; what gets every step.
        mode, norm_type, on_nonfinite, ranks: as of `Clipper`, checked.
        rule: says which steps are left out, whatever the groups decide; None: none.
    """

    def __init__(
        self,
        groups: Groups,
        deferred: Deferred,
        history: History,
        *,
        mode: str,
        norm_type: float,
        on_nonfinite: str,
        rule: Controller | None,
        ranks: ProcessGroup | Literal["world"] | None,
    ) -> None:
        self.groups, self.deferred, self.history, self.rule = groups, deferred, history, rule
        self.mode, self.norm_type, self.on_nonfinite, self.ranks = mode, norm_type, on_nonfinite, ranks
        self._skipped_by: SkippedBy | None = None  # what the rule left the latest step out for
        self._mark: Mark | None = None
        self.losses, self._checks = ReportedLosses(), Checks(mode, norm_type, history.warn_once)

    def run(self, loss: Number | None, clip_fn: ClipFn | None, loss_scale: Number | None) -> Tensor:
        """Take one step; the arguments are those of `Clipper.step`."""
        is_deferred = captured = False
        deferred, parameter = self.deferred, next(iter(self.groups.parameters.values()))
        may_defer = parameter.is_cuda or deferred.wait is False or deferred.pending is not None
        if may_defer:
            captured = deferred.is_captured(self.groups)
            if not captured:
                self.settle()
        self.groups.refresh()
        if may_defer:
            is_deferred = clip_fn is None and deferred.is_next(self.groups, captured)
        if not is_deferred and deferred.found_inf is not None and deferred.found_inf.has_overflow():
            self.losses.forget()
            return torch.tensor(inf)
        pending = self.losses.of_step(loss, self.ranks, parameter)
        if clip_fn is not None:
            return self._run_by(clip_fn, pending, loss_scale)
        gradients = gradients_of(self.groups.parameters)
        if is_deferred and (total := self._defer(gradients, loss_scale, pending, captured)) is not None:
            return total
        return self._measure_and_clip(gradients, loss_scale, pending, is_deferred, may_defer)

    def _measure_and_clip(
        self, gradients: dict[str, Tensor], scale: Number | None, pending: StepLoss, was_to_defer: bool, may_defer: bool
    ) -> Tensor:
        """A step whose norm the host waits for; `was_to_defer`: it was to go without; `may_defer`: later ones may."""
        tensors = list(gradients.values())
        norms = measure_all(gradients, self.groups.parameters, self.mode, self.norm_type, scale)
        if self._mark is not None and self._mark.fits(tensors, norms.value):
            if was_to_defer and self.history.last is not None and self.history.last.skipped:
                self.groups.remove_gradients()  # the optimizer was to leave out one step, not two
            return self._repeated(self._mark)
        if not tensors:
            self.history.warn_once(
                "empty", "no parameter has a gradient: call step() after backward() and before zero_grad()"
            )
        if not isfinite(norms.value):
            if scale is not None:
                return norms.total
            is_new = self._checks.is_open and self.deferred.found_inf is None
            cure = "; with a GradScaler call scaler.unscale_(optimizer) before step()" if is_new else ""
            self._meet_nonfinite(name_nonfinite(gradients, norms.each), cure)
        is_checked = self._checks.is_open
        by_hand = scale is None and self.deferred.found_inf is None
        if is_checked:
            self._checks.before(tensors, norms.value, self.groups.parameters.values() if by_hand else ())
        loss = pending.read()
        if may_defer:
            self.deferred.prepare(self.groups, gradients)
        self.history.latest_norms = (list(gradients), norms.each)
        measured = self.groups.measured(gradients, norms, self.norm_type)
        decisions = self._decide(measured.values, norms.value, loss)
        coefficient, left = self._shrink(measured, decisions)
        threshold = self._record(decisions, norms.value, coefficient, bool(tensors) and not left, loss)
        if is_checked:
            is_whole = by_hand and coefficient > 0 and len(left) == len(tensors)
            expected = norms_left(measured, decisions, self.mode) if is_whole else {}
            self._checks.after(expected, self.groups.parameters, threshold)
        return norms.total

    def _shrink(self, measured: Measured, decisions: Mapping[str, Decision]) -> tuple[float, list[Tensor]]:
        """Carry out the decisions; returns the share of the norm that is left, and the gradients that are."""
        norm = measured.all.value
        left = list(measured.gradients.values())
        if self._leaves_out(norm):
            self.groups.remove_gradients()
            coefficient, left = 0.0, []
        elif not isfinite(norm) and self.on_nonfinite == "zero":
            zero_(left)
            coefficient = 0.0
        else:
            removed, factor = shrink_(measured, decisions, self.groups.parameters, self.mode)
            if removed:
                self.groups.remove_gradients(removed)
                left = self.groups.remaining(measured.gradients, removed)
            if factor is None:
                factor = coefficient_of(decisions.values(), norm, self.mode, self.norm_type)
            coefficient = factor
        self._leave(left, measured.all, coefficient, is_removal=bool(measured.gradients) and not left)
        return coefficient, left

    def _defer(
        self, gradients: dict[str, Tensor], scale: Number | None, pending: StepLoss, captured: bool
    ) -> Tensor | None:
        """A step whose norm is read at the next step. None: nothing was done, and the step has to wait."""
        tensors = list(gradients.values())
        if not tensors or (self._mark and self._mark.is_on(tensors[0])):
            return None
        total = self.deferred.clip(self.groups, gradients, self.norm_type, scale, pending)
        if total is None:
            if captured:
                raise self.deferred.not_capturable()
            return None
        self._mark = Mark(tensors, total, None)
        if not captured:
            self.history.announce()
        return total

    def settle(self) -> None:
        """Learn from the latest step and record it, if that was not done yet."""
        step, self.deferred.pending = self.deferred.pending, None
        if step is None or (numbers := step.read()) is None:
            return
        norms, total, coefficient = numbers
        if not isfinite(total):
            self._meet_nonfinite(name_nonfinite(step.names, step.each))
        loss = step.loss()
        decisions = self._decide(norms, total, loss)
        finite, skipped = isfinite(total), self._leaves_out(total)
        if not finite and self.on_nonfinite in ("skip", "zero"):
            coefficient = 0.0
        elif len(decisions) > 1:
            touched = any(one.limit is not None for one in decisions.values())
            coefficient = coefficient_of(decisions.values(), total, "norm", self.norm_type) if touched else 1.0
        self.history.latest_norms = (step.names, step.each)
        if self._mark is not None:
            self._mark.norm = total * coefficient if finite or self.on_nonfinite != "zero" else 0.0
        self._record(decisions, total, 0.0 if skipped else coefficient, skipped, loss)

    def _run_by(self, clip_fn: ClipFn, pending: StepLoss, loss_scale: Number | None) -> Tensor:
        """A step in which somebody else's function clips, at the threshold that is known before the norm."""
        check_clip_fn(self.mode, self.groups.scope, loss_scale)
        tensors = list(gradients_of(self.groups.parameters).values())
        # A rank does not see the shards of the others, and all of them have to clip together.
        mark = self._mark if process_group("world") is None else None
        if mark and (not tensors or mark.is_on(tensors[0])) and mark.fits(tensors, self.norm_now(), FOREIGN):
            return self._repeated(mark)
        policy = self.groups.policy
        limit = inf if policy.inclusive else policy.threshold()
        norms = norm_from(clip_fn(limit))
        if not isfinite(norms.value):
            self._meet_nonfinite("the norm that clip_fn returned")
        loss = pending.read()
        self.history.latest_norms = None
        decisions = self._decide({ALL: norms.value}, norms.value, loss)
        decision = decisions[ALL]
        skipped = self._leaves_out(norms.value) or decision.limit == 0
        if skipped:
            self.groups.remove_gradients()
            coefficient = 0.0
        elif not isfinite(norms.value):
            coefficient = 1.0 if limit == inf else limit / norms.value
            if self.on_nonfinite == "zero":
                zero_(tensors)
                coefficient = 0.0
        else:
            shrink_further_(self.groups.parameters, norms.total, decision, limit)
            coefficient = coefficient_of([decision], norms.value, self.mode, self.norm_type)
        self._leave([] if skipped else tensors, norms, coefficient, is_removal=skipped)
        if self._checks.is_open:
            self._checks.after_clip_fn(norms.value * coefficient if 0 < coefficient < 1 else inf, self.norm_now)
        self._record(decisions, norms.value, coefficient, skipped, loss)
        return norms.total

    def clip_again(self, loss_scale: Number | None) -> Tensor:
        """Clip gradients that were computed again within the latest step, at its thresholds."""
        self.settle()
        gradients = gradients_of(self.groups.parameters)
        norms = measure_all(gradients, self.groups.parameters, self.mode, self.norm_type, loss_scale)
        if isfinite(norms.value):
            measured = self.groups.measured(gradients, norms, self.norm_type)
            self._shrink(measured, self.groups.judge_again(measured.values, norms.value, self.history.decisions))
        elif self.on_nonfinite == "zero" and loss_scale is None:
            zero_(list(gradients.values()))
        return norms.total

    def replay(self, graph: Any) -> None:
        """Replay a graph in which a step was captured, at the current thresholds."""
        self.settle()
        if self.losses.count:
            self.losses.forget()
            self.history.warn_once("unused", "report_loss() outside the captured step has no effect: call it within")
        self.deferred.replay(graph, self.groups)
        self._mark = None
        self.history.announce()

    def norm_now(self) -> float:
        """Total norm of the gradients as they are."""
        parameters = self.groups.parameters
        return measure_all(gradients_of(parameters), parameters, self.mode, self.norm_type, None).value

    def forget(self) -> None:
        """Forget earlier steps, because another state was loaded."""
        self._mark = self._skipped_by = self.history.latest_norms = None
        self.losses.forget()

    def __getstate__(self) -> dict[str, Any]:
        # References to memory and hooks of an optimizer cannot be pickled, and mean nothing elsewhere.
        self.settle()
        return {**vars(self), "_mark": None, "_checks": self._checks.fresh(), "deferred": self.deferred.fresh()}

    def _decide(self, norms: Mapping[str, float], total: float, loss: float | None) -> dict[str, Decision]:
        """Ask the policies, and the skip rule, which all learn; the arguments are those of `Groups.decide`."""
        decisions = self.groups.decide(norms, total, loss)
        if self.rule is not None:
            self._skipped_by = self.history.ask(self.rule, total, loss)
        return decisions

    def _meet_nonfinite(self, where: str, cure: str = "") -> None:
        self._skipped_by = None  # that of the step before
        self.history.meet_nonfinite(where, self.on_nonfinite, cure)

    def _leaves_out(self, norm: float) -> bool:
        """Return True if the whole step is left out, whatever was decided on its groups."""
        return self._skipped_by is not None or (self.on_nonfinite == "skip" and not isfinite(norm))

    def _leave(self, gradients: list[Tensor], before: Norms, coefficient: float, *, is_removal: bool) -> None:
        """Remember how the gradients were left."""
        self._mark = Mark(gradients, before.total, before.value * coefficient if coefficient else 0.0, is_removal)
        # A clipper that only measures is in nobody's way.
        if self._checks.is_open and not isinstance(self.groups.policy, NoClip):
            self._checks.mark(gradients)

    def _record(
        self, decisions: dict[str, Decision], norm: float, coefficient: float, skipped: bool, loss: float | None
    ) -> float:
        """Record a step; returns the bound on the norm of all gradients together."""
        made = decisions.values()
        if len(made) == 1:
            (one,) = made
            phase, threshold, clipped = one.phase, one.threshold, one.clipped
        else:
            phase, clipped = self.groups.phase(made), True in [one.clipped for one in made]
            threshold = allowed_norm(made, self.norm_type)
        skipped_by = self._skipped_by
        if skipped and isfinite(norm):
            skipped_by = skipped_by or next((by for one in made if (by := one.skipped_by)), None)
        self.history.add(decisions, phase, norm, threshold, coefficient, clipped, skipped, loss, skipped_by)
        return threshold

    def _repeated(self, mark: Mark) -> Tensor:
        self.losses.take_back()
        self.history.warn_once(
            "repeat",
            "step() was called again on the same gradients, and changed nothing; for a new step call zero_grad() and "
            "backward() first",
        )
        return mark.total
