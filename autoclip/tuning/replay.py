"""Replay: apply a policy to recorded norms."""

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoclip.controller import Controller, RelearnAfter
from autoclip.policies import Policy, checked_policy
from autoclip.policies.policy import Response
from autoclip.recorded import skip_rule
from autoclip.records import ROLLING_STEPS, clip_rate, finite_or_none, is_active, to_json

SPIKE_STEPS = 128
SPIKE_SIGMAS = 6.0
MANY_NORMS = 500_000
"""With this many norms, over all policies, starting further processes pays."""


@dataclass(frozen=True)
class Replay:
    """The effect of a policy on a sequence of norms, step by step.

    Attributes:
        policy: as Python code, with the skip rule if there is one.
        norms: (n,) before clipping.
        thresholds: (n,) in force at each step; inf: none.
        left: (n,) norms after clipping; 0 if the step is skipped, NaN or inf if the norm is.
        active: (n,) bool: after the warm-up, with a norm that is finite and above zero; only these count in the rates.
        clipped: (n,) bool: the norm lay above the threshold, in the warm-up too.
        relearned: number of times that the policy started again.
    """

    policy: str
    norms: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    left: NDArray[np.float64]
    active: NDArray[np.bool_]
    clipped: NDArray[np.bool_]
    relearned: int

    @property
    def clip_rate(self) -> float:
        """Share of the active steps that are clipped; NaN without one."""
        return clip_rate(int(self.clipped[self.active].sum()), int(self.active.sum()))

    @property
    def skip_rate(self) -> float:
        """Share of the active steps that are skipped; NaN without one."""
        return float((self.left[self.active] == 0).mean()) if self.active.any() else float("nan")

    def rolling_clip_rates(self, window: int = ROLLING_STEPS) -> NDArray[np.float64]:
        """Clip rate of every `window` active steps in a row; empty with fewer steps."""
        clipped = self.clipped[self.active].astype(np.float64)
        if len(clipped) < window:
            return np.empty(0)
        sums = np.concatenate([[0.0], clipped.cumsum()])
        return np.asarray((sums[window:] - sums[:-window]) / window)

    @property
    def longest_streak(self) -> int:
        """Largest number of active steps clipped in a row: long ones mean that the threshold does not follow."""
        clipped = np.concatenate([[False], self.clipped[self.active], [False]])
        changes = np.flatnonzero(clipped[1:] != clipped[:-1])
        return int((changes[1::2] - changes[::2]).max(initial=0))

    @property
    def caught_spikes(self) -> tuple[int, int]:
        """Number of spikes among the active steps that are clipped or skipped, and of all of them (see `spikes`)."""
        at = spikes(self.norms) & self.active
        return int((at & (self.clipped | (self.left == 0))).sum()), int(at.sum())

    @property
    def mean_coefficient(self) -> float:
        """Mean share of the norm that is left, over the active steps; NaN without one."""
        if not self.active.any():
            return float("nan")
        return float((self.left[self.active] / self.norms[self.active]).mean())

    def summary(self) -> dict[str, Any]:
        """The figures as plain values for JSON, see `records.to_json`; None: no step has one."""
        rolling = self.rolling_clip_rates()
        caught, total = self.caught_spikes
        figures = {
            "policy": self.policy,
            "steps": len(self.norms),
            "active_steps": int(self.active.sum()),
            "clip_rate": finite_or_none(self.clip_rate),
            "rolling_clip_rate_min": float(rolling.min()) if len(rolling) else None,
            "rolling_clip_rate_max": float(rolling.max()) if len(rolling) else None,
            "skip_rate": finite_or_none(self.skip_rate),
            "mean_coefficient": finite_or_none(self.mean_coefficient),
            "spikes": total,
            "spikes_clipped": caught,
            "longest_streak": self.longest_streak,
            "relearned": self.relearned,
            "final_threshold": float(self.thresholds[-1]) if len(self.thresholds) else None,
        }
        return dict(to_json(figures))


def replay(
    norms: Sequence[float] | NDArray[Any],
    policy: Policy | None = None,
    *,
    losses: Sequence[float] | NDArray[Any] | None = None,
    response: Response | None = None,
    relearn_after: RelearnAfter = "auto",
    skip: Policy | None = None,
) -> Replay:
    """Apply a policy to recorded norms, exactly as a training loop with these norms would.

    The norms are those of a training that was clipped in its own way, or not at all. A replay cannot show how the loss,
    and so the later norms, would have changed under this policy.

    Args:
        norms: (n,) before clipping, of every step, oldest first; NaN, inf and 0 mean what they do in training.
        policy: a clone of it is used, and itself learns nothing; None is `ProbingQuantile()`.
        losses: (n,) of the same steps, NaN if unknown; None: all unknown. An infinite one means what it does in
            training: a skip rule for losses leaves it out, and nothing is learned from it.
        response: as of `Clipper`.
        relearn_after: as of `Clipper`.
        skip: as of `Clipper`; a clone of it is used.

    Raises:
        TypeError: `policy` or `skip` is not a policy.
        ValueError: a negative norm, or arrays that do not fit each other.

    >>> from autoclip import Fixed
    >>> result = replay([1.0, 2.0, 8.0, 2.0], Fixed(4.0))
    >>> result.left.tolist(), result.clip_rate
    ([1.0, 2.0, 4.0, 2.0], 0.25)
    """
    policy = checked_policy(policy)
    values = _vector("norms", norms)
    if (values < 0).any():
        raise ValueError(f"norms cannot be negative, got {values[values < 0][0]} at {int((values < 0).argmax())}")
    heard = [None] * len(values) if losses is None else _vector("losses", losses).tolist()
    if len(heard) != len(values):
        raise ValueError(f"there are {len(heard)} losses for {len(values)} norms")
    fresh = policy.clone()
    controller = Controller(fresh, response or fresh.response, relearn_after)
    rule = skip_rule(skip.clone() if isinstance(skip, Policy) else skip)
    thresholds, left, clipped, active = array("d"), array("d"), array("b"), array("b")
    decide = controller.decide
    relearned = 0
    for norm, loss in zip(values.tolist(), heard, strict=True):
        decision = decide(norm, loss, norm)
        thresholds.append(decision.threshold)
        is_out = rule is not None and rule.decide(norm, loss).skipped_by is not None
        left.append(0.0 if is_out else decision.clipped_norm)
        clipped.append(decision.clipped)
        active.append(is_active(decision.phase, norm))
        relearned += decision.relearned > 0
    return Replay(
        policy=repr(policy) if rule is None else f"{policy!r}, skip={skip!r}",
        norms=values,
        thresholds=np.frombuffer(thresholds, dtype=np.float64),
        left=np.frombuffer(left, dtype=np.float64),
        active=np.frombuffer(active, dtype=np.bool_),
        clipped=np.frombuffer(clipped, dtype=np.bool_),
        relearned=relearned,
    )


def replay_all(
    norms: Sequence[float] | NDArray[Any],
    policies: Sequence[Policy],
    losses: Sequence[float] | NDArray[Any] | None = None,
    *,
    skip: Policy | None = None,
    processes: int = 1,
    fold: Callable[..., Replay] = replay,
) -> list[Replay]:
    """Replay several policies over the same norms.

    Args:
        norms: as of `replay`.
        policies: any number.
        losses: as of `replay`.
        skip: beside each of them, as of `replay`.
        processes: share the policies if there are many norms. Each imports the main module again: a script that asks
            for more than one needs `if __name__ == "__main__":` around its code.
        fold: replays one policy, called like `replay`; with several processes it must be a function of a module.
    """
    workers = min(len(policies), processes)
    if workers < 2 or len(norms) * len(policies) < MANY_NORMS:
        return [fold(norms, policy, losses=losses, skip=skip) for policy in policies]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(partial(fold, norms, losses=losses, skip=skip), policies))


def spikes(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) bool: the norm or loss is above mean + 6 standard deviations of the 128 finite ones before it.

    The first 128 never are, nor are non-finite ones.

    Args:
        values: (n,).
    """
    found = np.zeros(len(values), dtype=np.bool_)
    at = np.flatnonzero(np.isfinite(values))
    finite = values[at]
    if len(finite) <= SPIKE_STEPS:
        return found
    windows = np.lib.stride_tricks.sliding_window_view(finite, SPIKE_STEPS)[:-1]
    for start in range(0, len(windows), 8192):  # 8 MiB at a time
        part = windows[start : start + 8192]
        with np.errstate(over="ignore", invalid="ignore"):  # the limit is inf if squares overflow
            limit = part.mean(axis=1) + SPIKE_SIGMAS * part.std(axis=1)
        first = start + SPIKE_STEPS
        found[at[first : first + len(part)]] = finite[first : first + len(part)] > limit
    return found


def _vector(name: str, values: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {vector.shape}")
    return vector
