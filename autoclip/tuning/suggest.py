"""Recommend a setting from logged norms, with the reasons and how certain it is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoclip.errors import UsageError
from autoclip.policies import DEFAULT_KIND
from autoclip.records import clip_rate, to_json
from autoclip.traces import NormTrace
from autoclip.tuning.intervals import Interval, effective_count, percentile_interval, share_interval
from autoclip.tuning.log_findings import (
    CALM_RATIO,
    LARGEST_LOG_RATIO,
    LEAST_NORMS,
    Drift,
    LossFinding,
    Tail,
    broken_from,
    clipped_at,
    drift_of,
    loss_of,
    tail_of,
    times_text,
    useless_norms,
    without_trend,
)

PERCENTILES = (10, 25, 50, 75, 90, 95, 99)
THRESHOLDS = (1.0, 5.0, 10.0)
NUMBER_PERCENTILE = 90
"""Percentile of the norms for a trainer that takes only a number."""
NUMBER_SHARE = 0.01
"""At most this share of the norms may lie between that percentile and its rounded value."""
MOST_CLIPPED = 0.5
"""A number that clips more than this share of a training's norms does not fit it."""
FEW_INDEPENDENT = 50
WORTH_LESS = 0.5
"""The number of independent norms is shown if it is below this share of all norms."""
SCALED_MEDIAN = 1e4
"""Norms of this size are rare, unless gradients carry the factor of a `GradScaler`."""


class NoAdviceError(UsageError):
    """A log that gives no setting.

    Attributes:
        figures: its source, the reason and figures of its norms, as plain values for JSON.
    """

    def __init__(self, trace: NormTrace, reason: str, norms: NDArray[np.float64]) -> None:
        some = len(norms) > 0
        self.figures: dict[str, Any] = {
            "source": trace.source,
            "format": trace.format,
            "reason": reason,
            "norms": len(norms),
            "zero": int((trace.norms == 0).sum()),
            "nonfinite": int((~np.isfinite(trace.norms)).sum()),
            "median": float(np.median(norms)) if some else None,
            "largest": float(norms.max()) if some else None,
            "notes": list(trace.notes),
        }
        notes = f" ({'; '.join(trace.notes)})" if trace.notes else ""
        super().__init__(f"{trace.source}: {reason}{notes}")


@dataclass(frozen=True)
class Suggestion:
    """The findings on a trace, and the setting that follows.

    Attributes:
        trace: the trace itself.
        count: number of finite norms above zero; all figures are of those, and each was tested for a spike.
        effective_count: number of independent norms worth as much; neighbours resemble each other.
        zero: number of norms that are zero.
        nonfinite: number of norms that are NaN or inf.
        percentiles: percentile -> norm.
        largest: norm.
        largest_step: step of the largest norm, the first if it occurs again.
        largest_ratio: the largest norm over the median of all, at most 1e304.
        fixed: threshold -> share of the finite norms above zero that it would clip, the clip rate of its replay; of 1,
            5, 10 and `max_grad_norm`.
        drift: of the norms.
        tail: of the norms above their running median.
        spikes: share of the norms that are spikes, see `Tail`.
        loss: the finding on the losses.
        doubts: sentences on possible faults of the log and on its limits; first that the training broke down, if it
            did.
        max_grad_norm: for a trainer that takes only a number, percentile 90 of the norms. It has few digits, but at
            most one norm or 1 % of the norms lie between it and the percentile.
        policy: the `clip.policy` section of the setting.
        reason: for the setting.
    """

    trace: NormTrace
    count: int
    effective_count: float
    zero: int
    nonfinite: int
    percentiles: Mapping[float, Interval]
    largest: float
    largest_step: int
    largest_ratio: float
    fixed: Mapping[float, Interval]
    drift: Drift
    tail: Tail
    spikes: Interval
    loss: LossFinding
    doubts: Sequence[str]
    max_grad_norm: float
    policy: Mapping[str, Any]
    reason: str

    @property
    def is_worth_less(self) -> bool:
        """True if the norms are worth clearly fewer independent ones."""
        return self.effective_count < WORTH_LESS * self.count

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON, see `records.to_json`; an unknown end of an interval is inf."""
        figures = {
            "source": self.trace.source,
            "format": self.trace.format,
            "norms": self.count,
            "effective_norms": self.effective_count,
            "stride": self.trace.stride if self.trace.has_steps else None,
            "zero": self.zero,
            "nonfinite": self.nonfinite,
            "percentiles": {f"{name:g}": vars(one) for name, one in self.percentiles.items()},
            "largest": self.largest,
            "largest_step": self.largest_step,
            "largest_over_median": self.largest_ratio,
            "clipped_by_fixed": {f"{name:g}": vars(one) for name, one in self.fixed.items()},
            "drift": {"ratio": self.drift.ratio, "tau": self.drift.tau, "p_value": self.drift.p_value},
            "spikes": {**vars(self.spikes), "count": int(self.tail.spikes.sum()), "tested": self.count},
            "percentile_99_over_running_median": self.tail.ratio,
            "loss": self.loss.state,
            "notes": list(self.trace.notes),
            "doubts": list(self.doubts),
            "max_grad_norm": self.max_grad_norm,
            "recommended": {"policy": dict(self.policy)},
            "reason": self.reason,
        }
        return dict(to_json(figures))


def suggest(trace: NormTrace) -> Suggestion:
    """Look at the norms of a training and recommend a setting.

    A percentile's interval goes from one norm to another (see `interval_ranks`), for the number of independent norms
    that the trace is worth. This is the `effective_count` of the log norms over their running median, with a window of
    a third of the trace. Trend and memory cannot be separated for certain: with the trend in, a drift would count as
    memory; without it, slow memory counts as a drift. The truth lies between both.

    Raises:
        NoAdviceError: there are fewer than 20 finite norms above zero, or the norms look like those after clipping.
    """
    norms = trace.norms[np.isfinite(trace.norms) & (trace.norms > 0)]
    refusal = _refusal(trace, norms)
    if refusal:
        raise NoAdviceError(trace, refusal, norms)
    effective = effective_count(without_trend(norms))
    ordered = np.sort(norms)
    percentiles: dict[float, Interval] = {p: percentile_interval(ordered, p, effective) for p in PERCENTILES}
    drift, tail, loss = drift_of(norms), tail_of(norms), loss_of(trace)
    policy, reason = _setting(trace, norms, drift, tail, loss)
    number = _in_few_digits(float(np.percentile(norms, NUMBER_PERCENTILE)), norms)
    return Suggestion(
        trace=trace,
        count=len(norms),
        effective_count=effective,
        zero=int((trace.norms == 0).sum()),
        nonfinite=int((~np.isfinite(trace.norms)).sum()),
        percentiles=percentiles,
        largest=float(norms.max()),
        largest_step=int(trace.steps[(trace.norms == norms.max()).argmax()]),
        largest_ratio=_largest_ratio(norms),
        fixed={
            limit: share_interval(clip_rate(int((norms > limit).sum()), len(norms)), effective)
            for limit in sorted({*THRESHOLDS, number})
        },
        drift=drift,
        tail=tail,
        spikes=share_interval(float(tail.spikes.mean()), len(norms)),  # rare, and so about independent
        loss=loss,
        doubts=_doubts(trace, norms, effective, loss),
        max_grad_norm=number,
        policy=policy,
        reason=reason,
    )


def suggest_each(traces: Iterable[NormTrace]) -> tuple[list[Suggestion], list[NoAdviceError]]:
    """Look at several logs.

    Returns:
        The suggestions, and why the other logs have none.
    """
    suggestions, refused = [], []
    for trace in traces:
        try:
            suggestions.append(suggest(trace))
        except NoAdviceError as error:
            refused.append(error)
    return suggestions, refused


def difference_of(suggestions: Sequence[Suggestion]) -> str:
    """A sentence on why no single number fits several trainings; empty if one may fit.

    The test: the least of their numbers clips more than half of the norms of the training with the largest number.

    Args:
        suggestions: at least one.
    """
    least, most = (of(suggestions, key=lambda one: one.max_grad_norm) for of in (min, max))
    norms = most.trace.norms[np.isfinite(most.trace.norms) & (most.trace.norms > 0)]
    share = clip_rate(int((norms > least.max_grad_norm).sum()), len(norms))
    if share <= MOST_CLIPPED:
        return ""
    return (
        f"the runs differ, no single number fits all: {number_text(least)}, the number for {least.trace.source}, would "
        f"clip {share:.0%} of the norms of {most.trace.source}, whose number is {number_text(most)}"
    )


def number_text(suggestion: Suggestion) -> str:
    """The number for a trainer that takes only a number, with all its digits."""
    return repr(suggestion.max_grad_norm).removesuffix(".0")


def _largest_ratio(norms: NDArray[np.float64]) -> float:
    return exp(min(log(norms.max()) - log(np.median(norms)), LARGEST_LOG_RATIO))


def _in_few_digits(value: float, norms: NDArray[np.float64]) -> float:
    for digits in range(3, 17):
        rounded = float(f"{value:.{digits}g}")
        low, high = sorted((rounded, value))
        if isfinite(rounded) and ((norms > low) & (norms <= high)).sum() <= max(1, NUMBER_SHARE * len(norms)):
            return rounded
    return value


def _refusal(trace: NormTrace, norms: NDArray[np.float64]) -> str:
    """The reason why the log gives no setting; empty if it gives one."""
    useless = useless_norms(trace)
    if not len(norms):
        return f"{'; '.join(useless)}: first find out why"
    figures = f"median {np.median(norms):.3g}, largest {norms.max():.3g}"
    if len(norms) < LEAST_NORMS:
        few = f"{len(norms)} finite {'norm' if len(norms) == 1 else 'norms'} above zero ({figures})"
        return "; ".join([*useless, f"{few}: advice needs at least {LEAST_NORMS}"])
    limit = clipped_at(norms)
    if limit is None:
        return ""
    share = float((norms >= limit * (1 - 1e-3)).mean())
    piled = f"{share:.0%} of the norms lie within .1 % of the largest, {limit:.4g}"
    if share == 1:
        piled = f"all {len(norms)} norms are about {limit:.4g}"
    clipped = (
        f"{piled}: they look like norms after clipping, which hide larger norms; log the norm before "
        f"clipping, as clip_grad_norm_ returns it ({figures})"
    )
    return "; ".join([*useless, clipped])


def _doubts(trace: NormTrace, norms: NDArray[np.float64], effective: float, loss: LossFinding) -> list[str]:
    doubts = []
    broken = broken_from(trace)
    nonfinite = ~np.isfinite(trace.norms)
    if broken is not None:
        tail = trace.norms[trace.steps >= broken]
        what = "NaN" if np.isnan(tail).all() else "NaN or infinite"
        doubts.append(
            f"the training broke down {'by' if trace.stride > 1 else 'at'} {trace.place(broken)}: all {len(tail)} "
            f"norms from there on are {what}; first find out why; clipping helps only if a large norm caused it, and "
            f"the largest one logged before is {times_text(_largest_ratio(norms))} times the median; all figures are "
            f"of the norms before"
        )
    median = float(np.median(norms))
    if median > SCALED_MEDIAN:
        doubts.append(
            f"the gradients may still be multiplied by the scale of a GradScaler, as the median norm is {median:.3g}: "
            f"then divide by it, or log after unscale_"
        )
    if broken is None or nonfinite[trace.steps < broken].any():
        useless = ", ".join(one for one in useless_norms(trace) if not one.endswith("zero"))
        doubts += [f"{useless}; autoclip leaves such steps out (on_nonfinite: skip)"] if useless else []
    doubts += [f"{one}, and left out" for one in useless_norms(trace) if one.endswith("zero")]
    if trace.stride > 1:
        doubts.append(
            f"{trace.frequency} was logged: spikes and non-finite norms in the other {trace.stride - 1} of "
            f"{trace.stride} are not seen; the percentiles remain valid"
        )
    if effective < min(FEW_INDEPENDENT, WORTH_LESS * len(norms)):
        doubts.append(
            f"the {len(norms)} norms are worth at most about {effective:.0f} independent ones, as neighbours resemble "
            f"each other: the outer percentiles are uncertain"
        )
    if loss.state == "does not fall":
        doubts.append(f"{loss.text}: a training that learns may have other norms")
    if loss.state in ("constant", "about zero"):
        doubts.append(f"{loss.text}: it does not show how training goes, and is not used")
    return doubts


def _setting(
    trace: NormTrace, norms: NDArray[np.float64], drift: Drift, tail: Tail, loss: LossFinding
) -> tuple[dict[str, Any], str]:
    """The policy section and the reason; `experiments/studies/suggest` shows how well both cases did."""
    spikes, broken = int(tail.spikes.sum()), broken_from(trace)
    before = trace.norms if broken is None else trace.norms[trace.steps < broken]
    nonfinite = int((~np.isfinite(before)).sum())
    far = f"1 % of the norms are above {times_text(tail.ratio)} times their running median"
    largest = f"the largest norm is {times_text(_largest_ratio(norms))} times the median of all"
    change = f"; {drift}" if drift.is_large else ""
    if not (tail.is_large or nonfinite or broken is not None or loss.state == "does not fall"):
        return {"kind": "running_quantile", "percentile": 90}, (
            f"none of {len(norms)} norms is a spike ({far}, {largest}): clip only the largest tenth of the steps, as "
            f"an insurance against one that explodes{change}"
        )
    evidence = [] if broken is None else ["a training that broke down once may do so again"]
    if tail.is_large:
        counted = [f"{spikes} of {len(norms)} norms {'is a spike' if spikes == 1 else 'are spikes'}"] if spikes else []
        shown = [*counted, *([far] if tail.ratio > CALM_RATIO else []), largest]
        evidence.append(f"large norms occur ({', '.join(shown)})")
    if nonfinite:
        of = f"{len(before)} norms" if broken is None else f"the {len(before)} norms before that"
        evidence.append(f"{nonfinite} of {of} {'is' if nonfinite == 1 else 'are'} not finite")
    if loss.state == "does not fall":
        evidence.append(loss.text)
    rule = "a threshold that rises to percentile 90 of the recent norms, by 3 % at most in a step"
    if loss.is_usable:
        rule = (
            "a threshold that rises to percentile 90 of the recent norms, by 3 % at most in a step, and is lowered "
            "when the average loss rises"
        )
    return {"kind": DEFAULT_KIND}, f"{'; '.join(evidence)}: take autoclip's default, {rule}{change}"
