"""A policy and its response: what happens to a norm. Plain Python, the same in a training loop and in a replay."""

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Literal

from autoclip.policies.policy import Phase, Policy, Response

MOST_SKIPPED = 20
"""Skipped steps in a row that show a new level of the norms, with the response "skip"."""

RelearnAfter = int | Literal["auto"] | None
SkippedBy = Literal["norm", "loss", "loss and norm"]


@dataclass(slots=True)
class Decision:
    """What to do with one norm.

    Attributes:
        norm: before clipping.
        threshold: the one in force.
        phase: "warmup" or "active": which of the two set the threshold.
        clipped: the norm is finite and above the threshold, or `by_loss`.
        clipped_norm: norm to leave: as it was, or at most the threshold; 0: the step is skipped.
        is_shared: the threshold bounds the norm of all groups together, not of this one.
        relearned: steps clipped in a row after which the policy started again from their norms; 0: it did not.
        by_loss: the loss is above its threshold, and the step is skipped.
    """

    norm: float
    threshold: float
    phase: Phase
    clipped: bool
    clipped_norm: float
    is_shared: bool = False
    relearned: int = 0
    by_loss: bool = False

    @property
    def skipped_by(self) -> SkippedBy | None:
        """What stood out, if the step is skipped for it."""
        if not self.clipped or self.clipped_norm > 0:
            return None
        return "norm" if not self.by_loss else "loss and norm" if self.norm > self.threshold else "loss"

    @property
    def limit(self) -> float | None:
        """Norm to shrink to; 0: remove the gradients; None: leave them alone."""
        if self.clipped:
            return self.clipped_norm
        # A non-finite norm is passed on as torch does, by a factor that is not finite either.
        return None if self.norm < inf or self.threshold == inf else self.threshold


def share_bound(norm: float, total: float, bound: float) -> Decision:
    """Decide on the norm of one group, where a bound holds for all groups together.

    Args:
        norm: of this group.
        total: of all groups.
        bound: on the total.
    """
    clipped = norm > 0 and bound < total < inf
    return Decision(norm, bound, "warmup", clipped, norm * (bound / total) if clipped else norm, is_shared=True)


class Controller:
    """Asks a policy for its threshold, decides on the norm, and lets the policy learn.

        scale:       n becomes c            where n > c
        reciprocal:  n becomes c * c / n, or what the policy has instead (see `Policy.reciprocal`)
        skip:        n becomes 0, also where the loss is above its threshold (see `Policy.loss_threshold`)

    In the warm-up every response scales, because its threshold is a guess.

    Norms that stay above the threshold must not stall training. So after `relearn_after` active steps clipped in a row
    the policy starts again from the norms of those steps (the last hundred, or the policy's window).

    Args:
        policy: sets the threshold.
        response: what happens to a norm above it.
        relearn_after: number of steps; "auto": 20 if they are skipped, else ten windows of the policy (constants and
            percentile 0 never relearn); None: never.
    """

    def __init__(self, policy: Policy, response: Response, relearn_after: RelearnAfter = "auto") -> None:
        self.policy: Final = policy
        self.response: Final = response
        self.relearn_after: Final = self._steps(relearn_after)
        self.judges_loss: Final = response == "skip" and policy.loss_threshold() is not None
        self.active_steps = self.clipped_steps = self._streak = 0
        self._recent: deque[float] = deque(maxlen=policy.remembered_norms)

    def decide(self, norm: float, loss: float | None, total: float | None = None, *, ahead: bool = False) -> Decision:
        """Decide on the norm of one step, and learn from it.

        The policy learns after the decision; if it is inclusive, before it.

        Args:
            norm: of the gradients that the policy is for.
            loss: of the step.
            total: norm of all groups, if there may be several. Where it is not finite but the norm is, other groups
                have spoiled the step: nothing is learned.
            ahead: the gradients were clipped at the threshold known before: an inclusive policy too learns after it.
        """
        policy = self.policy
        if total is not None and norm < inf and not total < inf:
            return self.judge(norm, total)
        learns_first = policy.inclusive and not ahead
        if learns_first:
            policy.observe(norm, loss)
        decision = self.judge(norm, total, loss)
        if not learns_first:
            policy.observe(decision.clipped_norm if decision.is_shared else norm, loss)
        if decision.phase == "active" and 0 < norm < inf:
            self._count(decision)
        return decision

    def judge(self, norm: float, total: float | None = None, loss: float | None = None) -> Decision:
        """Decide without learning or counting; the arguments are those of `decide`."""
        policy = self.policy
        phase = policy.phase
        if phase == "warmup" and total is not None and (bound := policy.warmup_total) is not None:
            return share_bound(norm, total, bound)
        threshold = policy.threshold()
        if self.judges_loss and phase == "active" and loss is not None and 0 < norm < inf:
            loss_threshold = policy.loss_threshold()
            if loss_threshold is not None and loss > loss_threshold:
                return Decision(norm, threshold, phase, True, 0.0, by_loss=True)
        if not threshold < norm < inf:
            return Decision(norm, threshold, phase, False, norm)
        if phase == "warmup" or self.response == "scale":
            return Decision(norm, threshold, phase, True, threshold)
        return Decision(norm, threshold, phase, True, 0.0 if self.response == "skip" else policy.reciprocal(norm))

    @property
    def skips_above(self) -> float:
        """Norm above which the next step is left out, as far as it is known before; inf: none is (for its norm)."""
        return self.policy.threshold() if self.policy.phase == "active" else inf

    def judge_again(self, norm: float, total: float, before: Decision) -> Decision:
        """Decide on another norm of the same step, at that step's threshold.

        "reciprocal" leaves c * c / n here: a policy's own formula would go by what it has learned since.
        """
        threshold = before.threshold
        if before.is_shared:
            return share_bound(norm, total, threshold)
        if before.by_loss:
            return Decision(norm, threshold, before.phase, True, 0.0, by_loss=True)
        clipped, left = threshold < norm < inf, norm
        if clipped:
            scales = before.phase == "warmup" or self.response == "scale"
            left = threshold if scales else 0.0 if self.response == "skip" else threshold * (threshold / norm)
        return Decision(norm, threshold, before.phase, clipped, left)

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
        if missing := [name for name in self.state_dict() if name not in state]:
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

    def _count(self, decision: Decision) -> None:
        """Count an active step, and start the policy again if too many in a row were clipped."""
        self.active_steps += 1
        self.clipped_steps += decision.clipped
        if not decision.clipped:
            self._streak = 0
            self._recent.clear()
            return
        # Clipping at the user's own bound says nothing about the policy.
        at_bound = decision.threshold >= self.policy.max_threshold and not self.judges_loss
        if self.relearn_after is None or at_bound:
            return
        self._streak += 1
        self._recent.append(decision.norm)
        if self._streak >= self.relearn_after:
            decision.relearned, self._streak = self._streak, 0
            self.policy.relearn(list(self._recent))
            self._recent.clear()

    def _steps(self, relearn_after: RelearnAfter) -> int | None:
        if relearn_after == "auto":
            usual = self.policy.starves_after
            return MOST_SKIPPED if self.response == "skip" and usual is not None else usual
        if relearn_after is None or (type(relearn_after) is int and relearn_after >= 1):
            return relearn_after
        raise ValueError(f"relearn_after must be a whole number >= 1, 'auto' or None, got {relearn_after!r}")
