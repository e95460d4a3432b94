"""The history of a clipper's steps: counts, records, sinks and warnings. Without torch."""

from collections import deque
from collections.abc import Collection, Iterable
from math import inf, isfinite
from typing import Any, cast

from autoclip.controller import Controller, Decision, SkippedBy
from autoclip.policies.policy import ALL, Phase, Policy
from autoclip.records import ClipRecord, Sink, clip_rate, mean_coefficient
from autoclip.warn_once import WarnOnce

COUNTS = ("steps", "skipped_steps", "active_steps", "clipped_steps", "nonfinite_in_a_row")
"""Whole numbers that a state of a clipper holds; `clipped_steps` of the active ones only."""
STATE = (*COUNTS, "coefficient_sum")
"""Names in a clipper's state beside its groups; the coefficients are summed over the active steps."""
RECENT_STEPS = 2000
"""Number of steps whose records are kept for `Clipper.plot`, in 600 kB."""
TOLD_AGAIN = (10, 100, 1000)
"""The user is warned at these counts of steps in a row without a finite norm, besides the first."""
BY_CLIPPER = "clipper.report_loss(loss) before optimizer.step(), or {} where it is called by hand"
"""Words for how to give a clipper the loss."""
EFFECTS = {
    "skip": "the step has no effect on the parameters",
    "zero": "the gradients become zeros",
    "propagate": "passed on as it is",
}
"""What becomes of a step whose norm is not finite."""
TOLD_OF_NO_LOSS = 100
"""Steps after which the user is warned that none had a loss, if the policy reads it."""


LATE_LOSS = 3
"""Steps that show whether each loss comes a step late."""
LOOKS = frozenset({LATE_LOSS, 20, 50, 100, 200, 500, 1000})
"""Steps at which the history looks back."""
MOST_EQUAL, EQUAL = 10, 1e-5
"""This many norms within this share of the largest were limited by somebody else."""


def checked_sinks(sinks: Iterable[Sink]) -> tuple[Sink, ...]:
    """The sinks as a tuple.

    Raises:
        TypeError: something else than `Sink` objects.
    """
    found = tuple(sinks) if isinstance(sinks, Iterable) else (None,)
    if not all(isinstance(one, Sink) for one in found):
        raise TypeError(
            f"sinks must be a list of autoclip.sinks.Sink objects (derive your own from it), got {sinks!r:.200}"
        )
    return found


class History:
    """Counts the steps, passes their records to the sinks, and warns the user.

    Args:
        sinks: get every record.
        max_nonfinite_in_a_row: this many steps in a row without a finite norm raise; None: no number does.
        policy: of the clipper; None: it reads no loss.
        give_loss: how to give the loss, for the warning that none was given.

    Raises:
        TypeError: as in `checked_sinks`.
        ValueError: the number is no whole number >= 1.
    """

    def __init__(
        self,
        sinks: Iterable[Sink],
        max_nonfinite_in_a_row: int | None = None,
        policy: Policy | None = None,
        give_loss: str = BY_CLIPPER.format("clipper.step(loss=loss)"),
    ) -> None:
        most = max_nonfinite_in_a_row
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise ValueError(f"max_nonfinite_in_a_row must be a whole number >= 1 or None, got {most!r}")
        self.sinks = checked_sinks(sinks)
        self.max_nonfinite_in_a_row = most
        self.steps = self.skipped_steps = self.active_steps = self.clipped_steps = 0
        self.nonfinite_in_a_row = 0
        self.coefficient_sum = 0.0
        # Records, or their fields until they are wanted.
        self._recent: deque[tuple[Any, ...] | ClipRecord] = deque(maxlen=RECENT_STEPS)
        self.decisions: dict[str, Decision] = {}
        self.latest_norms: tuple[Collection[str], Any] | None = None  # by parameter: names, and a tensor, shape (n,)
        self.warn_once = WarnOnce()
        self._policy, self._give_loss = policy, give_loss
        self._expect_loss()

    def watch(self, clipper: Any) -> None:
        """Give the clipper to the sinks."""
        for sink in self.sinks:
            sink.watch(clipper)

    def announce(self) -> None:
        """Announce a step to the sinks whose record follows at the next step."""
        for sink in self.sinks:
            sink.announce(self.steps)

    @property
    def clip_rate(self) -> float:
        """Share of the active steps in which anything was clipped; NaN before the first."""
        return clip_rate(self.clipped_steps, self.active_steps)

    @property
    def mean_coefficient(self) -> float:
        """Mean of the coefficients of the active steps; NaN before the first."""
        return mean_coefficient(self.coefficient_sum, self.active_steps)

    @property
    def last(self) -> ClipRecord | None:
        """Record of the latest step."""
        if not self._recent:
            return None
        latest = self._recent[-1]
        if isinstance(latest, tuple):
            latest = self._recent[-1] = ClipRecord(*latest)
        return latest

    @property
    def recent(self) -> list[ClipRecord]:
        """Records of the latest steps, at most `RECENT_STEPS`; none from before a state was loaded."""
        return [ClipRecord(*one) if isinstance(one, tuple) else one for one in self._recent]

    def add(
        self,
        decisions: dict[str, Decision],
        phase: Phase,
        norm: float,
        threshold: float,
        coefficient: float,
        clipped: bool,
        skipped: bool,
        loss: float | None,
        skipped_by: SkippedBy | None = None,
    ) -> None:
        """Count and record a step; the record is made only when somebody wants it.

        Raises:
            RuntimeError: it is the last of `max_nonfinite_in_a_row` steps. It is counted and recorded.
        """
        self.decisions = decisions
        for group, decision in decisions.items():
            if decision.relearned:
                where = "" if group == ALL else f" in {group}"
                self.warn_once(
                    "relearned",
                    f"{decision.relearned} steps in a row were clipped{where} by step {self.steps}: the policy starts "
                    f"again from their norms",
                )
        finite = isfinite(norm)
        self._recent.append(
            (self.steps, phase, norm, threshold, coefficient, clipped, skipped, finite, loss, skipped_by)
        )
        self.steps += 1
        if self.without_loss is not None:
            self._look_for_loss(finite, loss)
        self.skipped_steps += skipped
        self.nonfinite_in_a_row = 0 if finite else self.nonfinite_in_a_row + 1
        if phase == "active" and 0 < norm < inf:
            self.active_steps += 1
            self.clipped_steps += clipped
            self.coefficient_sum += coefficient
        if self.steps in LOOKS:
            self._look_back()
        for sink in self.sinks:
            sink.log(cast(ClipRecord, self.last))
        if not finite:
            self._meet_many_nonfinite()

    def ask(self, rule: Controller, norm: float, loss: float | None, *, ahead: bool = False) -> SkippedBy | None:
        """Ask a skip rule about a step, from which it learns: what stands out, if the step is to be left out."""
        decision = rule.decide(norm, loss, ahead=ahead)
        if loss is None and rule.judges_loss:
            self.warn_once(
                "no loss to skip by",
                f"step {self.steps} has no loss, and {rule.policy!r} leaves out no step for a loss that it does not "
                f"know: call {self._give_loss}",
            )
        if decision.relearned:
            self.warn_once(
                "relearned to skip",
                f"{decision.relearned} steps in a row were left out by step {self.steps}: {rule.policy!r} starts again "
                f"from their norms",
            )
        return decision.skipped_by

    def meet_nonfinite(self, where: str, on_nonfinite: str, cure: str = "") -> None:
        """Raise or warn because the norm of this step is not finite, in some parameters."""
        found = f"non-finite gradient norm at step {self.steps}, in {where}"
        if on_nonfinite == "raise":
            raise RuntimeError(f"{found}; on_nonfinite='skip' would leave such a step without effect{cure}")
        self.warn_once("nonfinite", f"{found}: {EFFECTS[on_nonfinite]}{cure}")

    def _expect_loss(self) -> None:
        """Count the steps without a loss from here on.

        `without_loss` is the number of steps with a finite norm, none of which had a loss. None: one had, or the policy
        reads no loss.
        """
        self.without_loss: int | None = 0 if self._policy is not None and self._policy.reads_loss else None

    def _look_for_loss(self, finite: bool, loss: float | None) -> None:
        """Count a step, and warn once if the first hundred had no loss."""
        if loss is not None or self.without_loss is None:
            self.without_loss = None
            return
        self.without_loss += finite
        if self.without_loss == TOLD_OF_NO_LOSS:
            self.warn_once(
                "no loss",
                f"no loss was given in {TOLD_OF_NO_LOSS} steps, so that {self._policy!r} goes by the norms alone, "
                f"without its brake: call {self._give_loss}; or take a policy that needs none, as "
                f"RunningQuantile(percentile=50)",
            )

    def _look_back(self) -> None:
        """Warn of losses that come a step late, and of norms that somebody else has limited before."""
        records = self.recent
        if self.steps == LATE_LOSS and [one.loss is None for one in records] == [True, False, False]:
            self.warn_once(
                "late loss",
                "the first step had no loss, but those after it had: is report_loss() called after the step? Then each "
                "loss counts for the next step: call it before",
            )
        norms = [one.total_norm for one in records if 0 < one.total_norm < inf]
        equal = [norm for norm in norms if norm >= (1 - EQUAL) * max(norms)]
        # Bit-equal norms are those of a toy; a norm that was scaled to a bound is rounded.
        if len(equal) >= MOST_EQUAL and len({*equal}) > 1:
            self.warn_once(
                "foreign",
                f"{len(equal)} of {len(norms)} gradient norms are {max(norms):.4g}, the largest: does something else "
                f"clip before (clip_grad_norm_, max_grad_norm, gradient_clip_val)? Then the policy learns that number: "
                f"remove it",
            )

    def _meet_many_nonfinite(self) -> None:
        """Raise or warn because the norms of this many steps in a row were not finite."""
        count, most = self.nonfinite_in_a_row, self.max_nonfinite_in_a_row
        found = (
            f"non-finite gradient norms in {count} steps in a row, by step {self.steps - 1}: lower the learning rate, "
            f"look at the data of these steps, or for float16 begin with a lower loss scale"
        )
        if most is not None and count >= most:
            raise RuntimeError(f"{found} (max_nonfinite_in_a_row={most})")
        if count in TOLD_AGAIN:
            self.warn_once(f"nonfinite, {count} in a row", found)

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the sum of the coefficients."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting from a `state_dict()`.

        Raises:
            ValueError: a count is no whole number, or the sum cannot be one of that many coefficients. Nothing is
                changed.
        """
        counts = [state[name] for name in COUNTS]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"the counts in the state of a clipper must be whole numbers, got {counts}")
        total, active = state["coefficient_sum"], state["active_steps"]
        if not isinstance(total, int | float) or not 0 <= total <= active:
            raise ValueError(f"coefficient_sum in the state of a clipper must be in [0, {active}], got {total!r}")
        self.steps, self.skipped_steps, self.active_steps, self.clipped_steps, self.nonfinite_in_a_row = counts
        self.coefficient_sum = float(total)
        self._recent.clear()
        self.decisions = {}
        self._expect_loss()
