"""The steps of a clipper: measure, decide, clip, learn, record."""

from collections.abc import Collection, Mapping, Sequence
from math import inf, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from autoclip.clipper.checks import Checks, Mark
from autoclip.clipper.clip_function import ClipFn, clip_with
from autoclip.clipper.deferred import Deferred
from autoclip.clipper.groups import Groups
from autoclip.clipper.losses import ProcessGroup, ReportedLosses, StepLoss, process_group
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

NO_LOSS = StepLoss(None, None, torch.empty(0))
FOREIGN = 0.01
"""Relative error that somebody else's clipping may make in the norm that it leaves."""


class Step:
    """One step after another: measures, decides, clips, learns, and remembers what the next step needs.

    Args:
        groups: the parameters, and a policy for each group.
        deferred: the steps that do without a host wait.
        history: gets every step.
        mode: "norm", "value", "agc" or "param_rms".
        norm_type: order of the norm.
        on_nonfinite: "skip", "zero", "propagate" or "raise".
        rule: says which steps are left out, whatever the groups decide; None: none.
        ranks: over which a loss is averaged, see `Clipper`.
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
        self.groups, self.deferred, self.history = groups, deferred, history
        self.mode, self.norm_type, self.on_nonfinite, self.ranks = mode, norm_type, on_nonfinite, ranks
        self.rule, self._is_left_out = rule, False
        self.losses = ReportedLosses()
        self.latest_norms: tuple[Collection[str], Tensor] | None = None
        self._mark: Mark | None = None
        self._checks = Checks(mode, norm_type, history.warn_once)

    def run(self, loss: float | Tensor | None, clip_fn: ClipFn | None, loss_scale: float | Tensor | None) -> Tensor:
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
        found_inf = deferred.found_inf
        if not is_deferred and found_inf is not None and found_inf.has_overflow():
            self.losses.forget()
            return torch.tensor(inf)
        given = self.losses.mean() if loss is None and self.losses.count else loss
        # With or without a loss, a process group of the user's own is checked for this rank.
        nothing = given is None and (self.ranks is None or self.ranks == "world")
        pending = NO_LOSS if nothing else StepLoss(given, self.ranks, parameter)
        if self.losses.count:
            self.losses.forget()
        if clip_fn is not None:
            return self._run_by(clip_fn, pending, loss_scale)
        gradients = gradients_of(self.groups.parameters)
        if is_deferred:
            total = self._defer(gradients, loss_scale, pending, captured=captured)
            if total is not None:
                return total
        return self._measure_and_clip(gradients, loss_scale, pending, was_to_defer=is_deferred, may_defer=may_defer)

    def _measure_and_clip(
        self,
        gradients: Mapping[str, Tensor],
        loss_scale: float | Tensor | None,
        pending: StepLoss,
        *,
        was_to_defer: bool,
        may_defer: bool,
    ) -> Tensor:
        """A step whose norm the host waits for; `was_to_defer`: it was to go without; `may_defer`: later ones may."""
        tensors = list(gradients.values())
        norms = measure_all(gradients, self.groups.parameters, self.mode, self.norm_type, loss_scale)
        if self._mark is not None and self._mark.fits(tensors, norms.value):
            if was_to_defer and self.history.last is not None and self.history.last.skipped:
                self.groups.remove_gradients()  # the optimizer was to leave out one step, not two
            return self._repeated(self._mark)
        if not tensors:
            self.history.warn_once(
                "empty", "no parameter has a gradient: call step() after backward() and before zero_grad()"
            )
        if not isfinite(norms.value):
            if loss_scale is not None:
                return norms.total
            is_new = self._checks.is_open and self.deferred.found_inf is None
            cure = "; with a GradScaler call scaler.unscale_(optimizer) before step()" if is_new else ""
            self.history.meet_nonfinite(name_nonfinite(gradients, norms.each), self.on_nonfinite, cure)
        is_checked = self._checks.is_open
        by_hand = loss_scale is None and self.deferred.found_inf is None
        if is_checked:
            self._checks.before(tensors, norms.value, self.groups.parameters.values() if by_hand else ())
        loss = pending.read()
        if may_defer:
            self.deferred.prepare(self.groups, gradients)
        self.latest_norms = (list(gradients), norms.each)
        measured = self.groups.measured(gradients, norms, self.norm_type)
        decisions = self.groups.decide(measured.values, norms.value, loss)
        skipped_by = self._ask(norms.value, loss) if self.rule is not None else None
        coefficient, left = self._shrink(measured, decisions)
        skipped = bool(tensors) and not left
        threshold = self._record(decisions, norms.value, coefficient, skipped, loss, skipped_by)
        if is_checked:
            is_whole = by_hand and coefficient > 0 and len(left) == len(tensors)
            expected = norms_left(measured, decisions, self.mode) if is_whole else {}
            self._checks.after(expected, self.groups.parameters, threshold)
        return norms.total

    def _shrink(self, measured: Measured, decisions: Mapping[str, Decision]) -> tuple[float, list[Tensor]]:
        """Carry out the decisions; returns the share of the norm that is left, and the gradients that are."""
        norm = measured.all.value
        left = list(measured.gradients.values())
        if self._is_left_out or (not isfinite(norm) and self.on_nonfinite == "skip"):
            self.groups.remove_gradients()
            coefficient, left = 0.0, []
        elif not isfinite(norm) and self.on_nonfinite == "zero":
            coefficient = self._zero(left)
        else:
            removed, factor = shrink_(measured, decisions, self.groups.parameters, self.mode)
            if removed:
                self.groups.remove_gradients(removed)
                left = self.groups.remaining(measured.gradients, removed)
            if factor is None:
                factor = coefficient_of(decisions.values(), norm, self.mode, self.norm_type)
            coefficient = factor
        norm_left = norm * coefficient if coefficient else 0.0
        self._leave(left, measured.all.total, norm_left, is_removal=bool(measured.gradients) and not left)
        return coefficient, left

    def _defer(
        self, gradients: Mapping[str, Tensor], loss_scale: float | Tensor | None, pending: StepLoss, *, captured: bool
    ) -> Tensor | None:
        """A step whose norm is read at the next step. None: nothing was done, and the step has to wait."""
        tensors = list(gradients.values())
        if not tensors or (self._mark and self._mark.is_on(tensors[0])):
            return None
        total = self.deferred.clip(self.groups, gradients, self.norm_type, loss_scale, pending)
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
            self.history.meet_nonfinite(name_nonfinite(step.names, step.each), self.on_nonfinite)
        loss = step.loss()
        decisions = self.groups.decide(norms, total, loss)
        skipped_by = self._ask(total, loss) if self.rule is not None else None
        finite = isfinite(total)
        skipped = self._is_left_out or (self.on_nonfinite == "skip" and not finite)
        if not finite and self.on_nonfinite in ("skip", "zero"):
            coefficient = 0.0
        elif len(decisions) > 1:
            made = decisions.values()
            touched = any(one.limit is not None for one in made)
            coefficient = coefficient_of(made, total, "norm", self.norm_type) if touched else 1.0
        self.latest_norms = (step.names, step.each)
        if self._mark is not None:
            self._mark.norm = total * coefficient if finite or self.on_nonfinite != "zero" else 0.0
        self._record(decisions, total, 0.0 if skipped else coefficient, skipped, loss, skipped_by)

    def _run_by(self, clip_fn: ClipFn, pending: StepLoss, loss_scale: float | Tensor | None) -> Tensor:
        """A step in which somebody else's function clips."""
        if self.mode != "norm" or self.groups.scope != "global" or loss_scale is not None:
            raise ValueError(
                f"clip_fn scales all gradients by their one norm, without a loss scale: it needs mode='norm' and "
                f"scope='global', got mode={self.mode!r}, scope={self.groups.scope!r}, loss_scale={loss_scale!r}"
            )
        tensors = list(gradients_of(self.groups.parameters).values())
        # A rank does not see the shards of the others, and all of them have to clip together.
        alone, mark = process_group("world") is None, self._mark
        if alone and tensors and mark and mark.is_on(tensors[0]) and mark.fits(tensors, self.norm_now(), FOREIGN):
            return self._repeated(mark)
        loss: list[float | None] = []

        def read_loss() -> float | None:
            loss.append(pending.read())
            return loss[0]

        def meet_nonfinite() -> None:
            self.history.meet_nonfinite("the norm that clip_fn returned", self.on_nonfinite)

        total, decision, coefficient, skipped = clip_with(
            clip_fn, self.groups, read_loss, meet_nonfinite, skip=self.on_nonfinite == "skip"
        )
        self.latest_norms = None
        skipped_by = self._ask(decision.norm, loss[0]) if self.rule is not None else None
        if self._is_left_out:
            self.groups.remove_gradients()
            skipped, coefficient = True, 0.0
        elif not isfinite(decision.norm) and self.on_nonfinite == "zero":
            coefficient = self._zero(tensors)
        norm_left = decision.norm * coefficient if coefficient else 0.0
        self._leave([] if skipped else tensors, total, norm_left, is_removal=skipped)
        if self._checks.is_open:
            clipped = coefficient < 1 and not skipped
            self._checks.after_clip_fn(norm_left if clipped else inf, self.norm_now)
        self._record({ALL: decision}, decision.norm, coefficient, skipped, loss[0], skipped_by)
        return total

    def clip_again(self, loss_scale: float | Tensor | None) -> Tensor:
        """Clip gradients that were computed again within the latest step, at its thresholds."""
        self.settle()
        gradients = gradients_of(self.groups.parameters)
        norms = self.measure(gradients, loss_scale)
        if isfinite(norms.value):
            measured = self.groups.measured(gradients, norms, self.norm_type)
            self._shrink(measured, self.groups.judge_again(measured.values, norms.value, self.history.decisions))
        elif self.on_nonfinite == "zero" and loss_scale is None:
            self._zero(list(gradients.values()))
        return norms.total

    def replay(self, graph: Any) -> None:
        """Replay a graph in which a step was captured, at the current thresholds."""
        self.settle()
        if self.losses.count:
            self.losses.forget()
            self.history.warn_once(
                "unused", "report_loss() was called outside the captured step, where it has no effect"
            )
        self.deferred.replay(graph, self.groups)
        self._mark = None
        self.history.announce()

    def measure(self, gradients: Mapping[str, Tensor], loss_scale: float | Tensor | None = None) -> Norms:
        """Norms of gradients by parameter name, as the mode has them."""
        return measure_all(gradients, self.groups.parameters, self.mode, self.norm_type, loss_scale)

    def norm_now(self) -> float:
        """Total norm of the gradients as they are."""
        return self.measure(gradients_of(self.groups.parameters)).value

    def forget(self) -> None:
        """Forget earlier steps, because another state was loaded."""
        self.latest_norms = self._mark = None
        self._is_left_out = False
        self.losses.forget()

    def __getstate__(self) -> dict[str, Any]:
        # References to memory and hooks of an optimizer cannot be pickled, and mean nothing elsewhere.
        self.settle()
        fresh = {"_mark": None, "_checks": self._checks.fresh(), "deferred": self.deferred.fresh()}
        return {**vars(self), **fresh}

    def _ask(self, norm: float, loss: float | None) -> SkippedBy | None:
        """Ask the skip rule about the latest step: what stands out in it."""
        assert self.rule is not None
        skipped_by = self.history.ask(self.rule, norm, loss)
        self._is_left_out = skipped_by is not None
        return skipped_by

    def _zero(self, gradients: Sequence[Tensor]) -> float:
        """Make gradients zeros; returns the share of them that is left."""
        if gradients:
            zero_(gradients, torch.ones((), dtype=torch.bool, device=gradients[0].device))
        return 0.0

    def _leave(self, gradients: list[Tensor], total: Tensor, norm: float, *, is_removal: bool) -> None:
        """Remember how the gradients were left."""
        self._mark = Mark(gradients, total, norm, is_removal)
        # A clipper that only measures is in nobody's way.
        if self._checks.is_open and not isinstance(self.groups.policy, NoClip):
            self._checks.mark(gradients)

    def _record(
        self,
        decisions: dict[str, Decision],
        norm: float,
        coefficient: float,
        skipped: bool,
        loss: float | None,
        skipped_by: SkippedBy | None,
    ) -> float:
        """Record a step; returns the bound on the norm of all gradients together."""
        made = decisions.values()
        if len(made) == 1:
            (one,) = made
            phase, threshold, clipped = one.phase, one.threshold, one.clipped
        else:
            phase, clipped = self.groups.phase(made), any(one.clipped for one in made)
            threshold = allowed_norm(made, self.norm_type)
        if skipped and skipped_by is None:
            skipped_by = next((one.skipped_by for one in made), None)
        self.history.add(decisions, phase, norm, threshold, coefficient, clipped, skipped, loss, skipped_by)
        return threshold

    def _repeated(self, mark: Mark) -> Tensor:
        self.history.warn_once(
            "repeat",
            "step() was called again on the same gradients, and changed nothing; for a new step call zero_grad() and "
            "backward() first",
        )
        return mark.total
