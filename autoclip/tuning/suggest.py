"""From norms that were logged to a setting, with what speaks for it and how certain it is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, isfinite, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from autoclip.errors import UsageError
from autoclip.policies import DEFAULT_KIND
from autoclip.records import clip_rate
from autoclip.traces import NormTrace
from autoclip.tuning.replay import spikes

PERCENTILES = (10, 25, 50, 75, 90, 95, 99)
THRESHOLDS = (1.0, 5.0, 10.0)
LEAST_NORMS = 20
BLOCKS = 10
DRIFT_RATIO = 1.5
"""Change of the median from the first to the last fifth that counts as drift, where the trend is significant."""
DRIFT_P_VALUE = 0.01
LARGEST_LOG_RATIO = 700.0
"""About the log of the largest float, whose inverse is a float too."""
CALM_RATIO = 3.0
"""99th percentile over the median, up to which nothing stands out."""
LEAST_FALL = 0.05
"""Share by which the loss of a training that learns falls at least, from the first fifth to the last."""
MANY_EQUAL = 0.05
"""Share of norms within .1 % of the largest from which on they look clipped."""
LAGS_PER_TIME = 5.0
SCALED_MEDIAN = 1e4
"""Norms of this size are seldom but where gradients carry the factor of a `GradScaler`."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval.

    Attributes:
        value: the estimate.
        low: at least 0, which is all that is known of some percentiles of positive norms.
        high: inf: unknown.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.highest('.3g')}]"

    def highest(self, form: str) -> str:
        """The upper end in a format, or that it is unknown."""
        return format(self.high, form) if isfinite(self.high) else "unknown"


@dataclass(frozen=True)
class Drift:
    """How the norms change over the trace.

    Attributes:
        log_ratio: log of the median of the last fifth over that of the first.
        tau: Kendall's rank correlation of the medians of ten blocks with time.
        p_value: of no trend.
    """

    log_ratio: float
    tau: float
    p_value: float

    @property
    def ratio(self) -> float:
        """Median of the last fifth over that of the first, to the nearest of 1e-304 to 1e304."""
        return exp(min(max(self.log_ratio, -LARGEST_LOG_RATIO), LARGEST_LOG_RATIO))

    @property
    def is_large(self) -> bool:
        """Whether the median changes enough to matter, by a trend or by chance."""
        return abs(self.log_ratio) > log(DRIFT_RATIO)

    @property
    def is_there(self) -> bool:
        """Whether there is a trend, and it is large enough to matter."""
        return self.p_value < DRIFT_P_VALUE and self.is_large

    def __str__(self) -> str:
        change = f"by a factor of {max(self.ratio, 1 / self.ratio):.2g} ({'up' if self.ratio > 1 else 'down'})"
        if self.is_there:
            return f"the median norm changes {change}, so that no constant stays right"
        if self.is_large:
            return (
                f"the median norm changes {change}, though not steadily enough to tell a trend from chance "
                f"(p = {self.p_value:.2g}), and those of other learning rates will differ"
            )
        return "the norms do not drift much, but those of other learning rates will"


@dataclass(frozen=True)
class Suggestion:
    """What a trace tells, and the setting that follows.

    Attributes:
        trace: that was looked at.
        count: number of finite norms above zero; all figures are of those.
        effective_count: number of independent norms that are worth as much, as neighbours resemble each other.
        zero: number of norms that are zero.
        nonfinite: number of norms that are NaN or inf.
        percentiles: percentile -> norm.
        fixed: threshold -> share of the finite norms above zero that it would clip, the clip rate of its replay.
        drift: of the norms.
        spikes: share of the norms that lie above mean + 6 standard deviations of the 128 before.
        doubts: sentences on what may be wrong with the log, or limits what it tells.
        policy: the `clip.policy` section of the setting.
        reason: for the setting.
    """

    trace: NormTrace
    count: int
    effective_count: float
    zero: int
    nonfinite: int
    percentiles: Mapping[float, Interval]
    fixed: Mapping[float, Interval]
    drift: Drift
    spikes: Interval
    doubts: Sequence[str]
    policy: Mapping[str, Any]
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; the end of an interval is None where it is unknown."""

        def interval(one: Interval) -> dict[str, float | None]:
            return {"value": one.value, "low": one.low, "high": one.high if isfinite(one.high) else None}

        return {
            "source": self.trace.source,
            "norms": self.count,
            "effective_norms": self.effective_count,
            "stride": self.trace.stride if self.trace.has_steps else None,
            "zero": self.zero,
            "nonfinite": self.nonfinite,
            "percentiles": {f"{name:g}": interval(one) for name, one in self.percentiles.items()},
            "clipped_by_fixed": {f"{name:g}": interval(one) for name, one in self.fixed.items()},
            "drift": {"ratio": self.drift.ratio, "tau": self.drift.tau, "p_value": self.drift.p_value},
            "spikes": interval(self.spikes),
            "notes": list(self.trace.notes),
            "doubts": list(self.doubts),
            "recommended": {"policy": dict(self.policy)},
            "reason": self.reason,
        }


def suggest(trace: NormTrace) -> Suggestion:
    """Look at the norms of a training and recommend a setting.

    A percentile's interval goes from one norm to another (see `interval_ranks`), for the number of independent norms
    that the trace is worth (see `effective_count`, of the log norms).

    Raises:
        UsageError: there are fewer than 20 finite norms above zero.
    """
    usable = np.isfinite(trace.norms) & (trace.norms > 0)
    norms = trace.norms[usable]
    if len(norms) < LEAST_NORMS:
        raise UsageError(
            f"{trace.source}: {len(norms)} finite norms above zero are too few to tell anything, {LEAST_NORMS} are the "
            f"least; log the norm of every step{''.join(f'; note: {note}' for note in trace.notes)}"
        )
    effective = effective_count(np.log(norms))
    percentiles: dict[float, Interval] = {p: _percentile(norms, p, effective) for p in PERCENTILES}
    drift = _drift(norms)
    found = spikes(norms)
    spike_share = _share(float(found.mean()), len(norms))  # rare, and so about independent
    nonfinite = int((~np.isfinite(trace.norms)).sum())
    stuck = _stuck(trace)
    doubts = _doubts(trace, norms, effective, nonfinite) + stuck
    policy, reason = _setting(percentiles, drift, int(found.sum()), len(norms), nonfinite, bool(stuck))
    return Suggestion(
        trace=trace,
        count=len(norms),
        effective_count=effective,
        zero=int((trace.norms == 0).sum()),
        nonfinite=nonfinite,
        percentiles=percentiles,
        fixed={limit: _share(clip_rate(int((norms > limit).sum()), len(norms)), effective) for limit in THRESHOLDS},
        drift=drift,
        spikes=spike_share,
        doubts=doubts,
        policy=policy,
        reason=reason,
    )


def suggest_each(traces: Iterable[NormTrace]) -> tuple[list[Suggestion], list[str]]:
    """Look at several logs; one that tells too little does not keep the others from being told.

    Returns:
        The suggestions, at least one, and why the other logs have none.

    Raises:
        UsageError: none of the logs tells enough.
    """
    suggestions, refused = [], []
    for trace in traces:
        try:
            suggestions.append(suggest(trace))
        except UsageError as error:
            refused.append(str(error))
    if not suggestions:
        raise UsageError("\n".join(refused))
    return suggestions, refused


def effective_count(values: NDArray[np.float64]) -> float:
    """Number of independent values whose mean is as certain as that of these, in [1, n].

    n over the integrated autocorrelation time 1 + 2 (r_1 + ... + r_M), M the first lag of at least five such times.

    Args:
        values: (n,), n > 1, in the order of time.

    Reference: Sokal, "Monte Carlo Methods in Statistical Mechanics", 1997, section 3 (the automatic window).
    """
    count = len(values)
    centred = values - values.mean()
    if not (centred**2).sum() > 0:
        return float(count)
    size = 2 ** int(np.ceil(np.log2(2 * count)))
    spectrum = np.fft.rfft(centred, size)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size)[:count]
    correlation = covariance[1:] / covariance[0]
    times = 1 + 2 * correlation.cumsum()
    lags = np.arange(1, count)
    enough = lags >= LAGS_PER_TIME * times
    time = times[int(enough.argmax())] if enough.any() else times.max()
    return float(max(count / max(time, 1.0), 1.0))  # neighbours that differ make the time less than 1, even negative


def interval_ranks(share: float, count: int, effective: float) -> tuple[int, int]:
    """Ranks, from 1, of the sorted values between which the quantile of `share` lies with at least 95 % confidence.

    For independent values the number of those below the quantile is binomial, whatever their distribution: it is less
    than the lower rank with a probability of at most 2.5 %, and as many as the upper rank or more with as small a one.
    Where they are worth fewer, the ranks are those of as many independent values, spread over all.

    Args:
        share: in (0, 1).
        count: number of values.
        effective: number of independent ones that they are worth, in [1, count].

    Returns:
        The lower rank, 0: the interval is open there; the upper rank, count + 1: open there.

    Reference: David and Nagaraja, "Order Statistics", 2003, section 7.1.
    """
    worth = int(effective)
    low, high = (int(rank) for rank in stats.binom.ppf([0.025, 0.975], worth, share))
    return (
        (low - 1) * count // worth + 1 if low > 0 else 0,
        ceil((high + 1) * count / worth) if high < worth else count + 1,
    )


def _percentile(norms: NDArray[np.float64], percentile: float, effective: float) -> Interval:
    low, high = interval_ranks(percentile / 100, len(norms), effective)
    known = [0.0, *np.sort(norms).tolist(), inf]
    return Interval(float(np.percentile(norms, percentile)), known[low], known[high])


def _share(share: float, count: float) -> Interval:
    """Wilson's 95 % interval of a share of `count` independent cases."""
    z = float(stats.norm.ppf(0.975))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(float(share), max(0.0, centre - half), min(1.0, centre + half))


def log_drift(norms: NDArray[np.float64]) -> float:
    """Log of the median of the last fifth of the norms, which are above zero, over that of the first."""
    fifth = max(len(norms) // 5, 1)
    return log(np.median(norms[-fifth:])) - log(np.median(norms[:fifth]))


def _drift(norms: NDArray[np.float64]) -> Drift:
    blocks = [float(np.median(block)) for block in np.array_split(norms, BLOCKS)]
    tau, p_value = stats.kendalltau(np.arange(BLOCKS), blocks)
    known = isfinite(tau)  # it is not where all blocks are equal
    return Drift(log_drift(norms), float(tau) if known else 0.0, float(p_value) if known else 1.0)


def _stuck(trace: NormTrace) -> list[str]:
    """The doubt about a loss that hardly falls; none where it falls, or too little of it is known."""
    finite = trace.losses[np.isfinite(trace.losses)] if trace.losses is not None else np.empty(0)
    if len(finite) < LEAST_NORMS:
        return []
    fifth = len(finite) // 5
    first, last = float(np.median(finite[:fifth])), float(np.median(finite[-fifth:]))
    if last <= first - LEAST_FALL * abs(first):
        return []
    return [
        f"the loss hardly falls (median of the first fifth {first:.4g}, of the last {last:.4g}): the norms of a "
        f"training that learns little say little about one that does"
    ]


def _doubts(trace: NormTrace, norms: NDArray[np.float64], effective: float, nonfinite: int) -> list[str]:
    doubts = []
    largest = float(norms.max())
    equal = float((norms >= largest * (1 - 1e-3)).mean())
    if equal >= MANY_EQUAL and norms.min() < largest * 0.999:
        doubts.append(
            f"{equal:.0%} of the norms lie within .1 % of the largest, {largest:.4g}: they look like norms after "
            f"clipping at {largest:.3g}; log them before it, or what lies above stays unknown"
        )
    elif equal == 1:
        doubts.append(f"all norms are {largest:.4g}: they look like norms after clipping; log them before it")
    median = float(np.median(norms))
    if median > SCALED_MEDIAN:
        doubts.append(
            f"the median norm is {median:.3g}: were the gradients still multiplied by the scale of a GradScaler? Then "
            f"divide by it, or log after unscale_"
        )
    if trace.stride > 1:
        doubts.append(
            f"one step in {trace.stride} was logged: the percentiles are as certain as their intervals say, but about "
            f"{1 - 1 / trace.stride:.0%} of the spikes and non-finite steps are not in the log"
        )
    if effective < 50:
        doubts.append(
            f"the {len(norms)} norms are worth {effective:.0f} independent ones, as neighbours resemble each other: "
            f"the outer percentiles are hardly known"
        )
    if nonfinite:
        doubts.append(
            f"{nonfinite} of {len(trace.norms)} norms are not finite; autoclip leaves such steps out "
            f"(on_nonfinite: skip)"
        )
    return doubts


def _setting(
    percentiles: Mapping[float, Interval], drift: Drift, spike_count: int, count: int, nonfinite: int, stuck: bool
) -> tuple[dict[str, Any], str]:
    """The policy section, and why; `experiments/studies/suggest` has how both cases did."""
    median = percentiles[50].value
    tail = percentiles[99].value / median
    if spike_count == 0 and nonfinite == 0 and tail <= CALM_RATIO and not stuck:
        return {"kind": "running_quantile", "percentile": 90}, (
            f"nothing stands out (no spike in {count} norms, percentile 99 is {tail:.2g} times the median): aim at the "
            f"top tenth only, which costs little and is there when a step does explode; {drift}"
        )
    evidence = [f"percentile 99 is {tail:.2g} times the median"]
    if stuck:
        evidence.append("the loss hardly falls")
    if spike_count:
        evidence.append(f"{spike_count} of {count} norms are spikes")
    if nonfinite:
        evidence.append(f"{nonfinite} are not finite")
    what = "training may be stuck" if stuck else "large steps occur"
    return {"kind": DEFAULT_KIND}, (
        f"{what} ({', '.join(evidence)}): take the default, a running percentile that opens while training goes well, "
        f"rises by 3 % a step at most, and steps back when the loss rises; {drift}"
    )
