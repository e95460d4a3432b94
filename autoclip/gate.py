"""A policy and its response: what happens to a norm. Plain Python, the same in a training loop and in a replay."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final, Literal

from autoclip.policies.policy import Phase, Policy, Response

MOST_SKIPPED = 20
"""Skipped steps in a row that tell of a new level of the norms, if the response is to skip."""

RelearnAfter = int | Literal["auto"] | None


@dataclass(slots=True)
class Decision:
    """What to do with one norm; not changed once made.

    Attributes:
        norm: before clipping.
        threshold: the one in force.
        phase: "warmup" or "active": which of the two set the threshold.
        clipped: the norm is finite and above the threshold.
        clipped_norm: norm to leave: as it was, or at most the threshold; 0: the step is skipped.
        relearned: steps clipped in a row after which the policy started again from their norms; 0: it did not.
    """

    norm: float
    threshold: float
    phase: Phase
    clipped: bool
    clipped_norm: float
    relearned: int = 0

    @property
    def limit(self) -> float | None:
        """Norm to shrink to; 0: the gradients are removed; None: they are not touched."""
        if self.clipped:
            return self.clipped_norm
        # What is not finite is passed on as torch does, by a factor that is not finite either.
        return None if self.norm < inf or self.threshold == inf else self.threshold

    def rounded_norm(self, mode: str) -> float:
        """Norm that is left, as float32 rounds it at best."""
        limit = self.limit
        if limit is None:
            return self.norm
        if mode == "norm" and limit == self.threshold:
            return self.norm * (limit / (self.norm + min(1e-6, 1e-3 * limit)))
        return limit


def look_together(norm: float, coefficient: float, bound: float) -> Decision:
    """Decide on the norm of one group in a warm-up that bounds the norm of all together.

    Args:
        norm: of this group.
        coefficient: that brings the norm of all groups within the bound.
        bound: on the norm of all groups together.
    """
    return Decision(norm, bound, "warmup", coefficient < 1, norm * coefficient)


class Gate:
    """Asks a policy for its threshold, decides on the norm, and lets the policy learn.

        scale:       n becomes c            where n > c
        reciprocal:  n becomes c * c / n, or what the policy has instead (see `Policy.reciprocal`)
        skip:        n becomes 0

    In the warm-up every response scales: its threshold is a guess.

    A level of norms that stays above the threshold must not stall training. So after `relearn_after` active steps
    clipped in a row the policy starts again from the norms of those steps (the last hundred, or the policy's window).

    Args:
        policy: sets the threshold.
        response: what happens to a norm above it.
        relearn_after: number of steps; "auto": 20 if they are skipped, else ten windows of the policy (constants and
            percentile 0 never relearn); None: never.
    """

    def __init__(self, policy: Policy, response: Response, relearn_after: RelearnAfter = "auto") -> None:
        self.policy: Final = policy
        self.response: Final = response
        self.limit: Final = self._limit(relearn_after)
        self.active_steps = 0
        self.clipped_steps = 0
        self._streak = 0
        self._recent: deque[float] = deque(maxlen=policy.remembered_norms)

    def decide(self, norm: float, loss: float | None) -> Decision:
        """Decide on the norm of one step; the policy learns from it afterwards, or before if it is inclusive."""
        policy = self.policy
        if policy.inclusive:
            policy.observe(norm, loss)
            return self._counted(norm, self.look(norm))
        decision = self.look(norm)
        policy.observe(norm, loss)
        return self._counted(norm, decision)

    def decide_ahead(self, norm: float, loss: float | None) -> Decision:
        """Decide on a norm that was clipped at the threshold known before it, inclusive policy or not."""
        decision = self.look(norm)
        self.policy.observe(norm, loss)
        return self._counted(norm, decision)

    def look(self, norm: float) -> Decision:
        """Decide without learning or counting, for a step that other gradients have spoiled."""
        policy = self.policy
        threshold, phase = policy.threshold(), policy.phase
        if not threshold < norm < inf:
            return Decision(norm, threshold, phase, False, norm)
        return self._clipped(norm, threshold, phase, policy.reciprocal)

    def look_again(self, norm: float, before: Decision) -> Decision:
        """Decide on another norm of the same step, at that step's threshold.

        "reciprocal" leaves c * c / n here: a policy's own formula would go by what it has learned since.
        """
        threshold = before.threshold
        if not threshold < norm < inf:
            return Decision(norm, threshold, before.phase, False, norm)
        return self._clipped(norm, threshold, before.phase, lambda above: threshold * (threshold / above))

    def decide_alone(self, norm: float, loss: float | None) -> Decision:
        """Decide on the norm of all gradients if this gate's group is the only one."""
        if self.policy.phase == "active":
            return self.decide(norm, loss)
        bound = self.policy.warmup_total
        if bound is None or not 0 < norm < inf:
            return self.decide(norm, loss)
        return self.decide_together(norm, loss, min(1.0, bound / norm), bound)

    def decide_together(self, norm: float, loss: float | None, coefficient: float, bound: float) -> Decision:
        """Decide on a norm in the warm-up of a policy that bounds the norm of all groups together.

        Args:
            norm: of this group.
            loss: of the step.
            coefficient: that brings the norm of all groups within the bound.
            bound: on the norm of all groups together.
        """
        decision = look_together(norm, coefficient, bound)
        self.policy.observe(decision.clipped_norm, loss)
        return decision

    def state_dict(self) -> dict[str, Any]:
        """Everything learned and counted, as plain values."""
        return {
            "policy": self.policy.state_dict(),
            "active_steps": self.active_steps,
            "clipped_steps": self.clipped_steps,
            "streak": self._streak,
            "recent": list(self._recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()` made with the same policy.

        Raises:
            ValueError: keys are missing, or the state is that of another policy; nothing is changed.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"the state has no {', '.join(missing)}; it has {', '.join(state)}")
        counts = [state[name] for name in ("active_steps", "clipped_steps", "streak")]
        if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
            raise ValueError(f"the counts in a state must be whole numbers, got {counts}")
        recent = [float(norm) for norm in state["recent"]]
        if not all(0 < norm < inf for norm in recent):
            raise ValueError(f"the recent norms in a state must be finite and > 0, got {recent}")
        self.policy.load_state_dict(state["policy"])
        self.active_steps, self.clipped_steps, self._streak = counts
        self._recent = deque(recent, self.policy.remembered_norms)

    def _clipped(self, norm: float, threshold: float, phase: Phase, reciprocal: Callable[[float], float]) -> Decision:
        if self.response == "scale" or phase == "warmup":
            return Decision(norm, threshold, phase, True, threshold)
        return Decision(norm, threshold, phase, True, 0.0 if self.response == "skip" else reciprocal(norm))

    def _counted(self, norm: float, decision: Decision) -> Decision:
        if decision.phase != "active" or not 0 < norm < inf:
            return decision
        self.active_steps += 1
        self.clipped_steps += decision.clipped
        # Clipping at the user's own bound says nothing about the policy.
        if self.limit is None or decision.threshold >= self.policy.max_threshold:
            return decision
        if not decision.clipped:
            self._streak = 0
            if self._recent:
                self._recent.clear()
            return decision
        self._streak += 1
        self._recent.append(norm)
        if self._streak < self.limit:
            return decision
        relearned, self._streak = self._streak, 0
        self.policy.relearn(list(self._recent))
        self._recent.clear()
        return replace(decision, relearned=relearned)

    def _limit(self, relearn_after: RelearnAfter) -> int | None:
        if relearn_after is None:
            return None
        if relearn_after != "auto":
            if not isinstance(relearn_after, int) or isinstance(relearn_after, bool) or relearn_after < 1:
                raise ValueError(f"relearn_after must be a whole number >= 1, 'auto' or None, got {relearn_after!r}")
            return relearn_after
        usual = self.policy.starves_after
        return MOST_SKIPPED if self.response == "skip" and usual is not None else usual
