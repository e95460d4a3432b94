"""Findings on the norms and losses of a log, each with its test."""

from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.ndimage import median_filter

from autoclip.traces import NormTrace

Floats = NDArray[np.float64]

LEAST_NORMS = 20
LARGEST_LOG_RATIO = 700.0
"""About the log of the largest float with an inverse that is a float too."""
CALM_RATIO = 3.0
"""A norm of up to this many times the running median is not large."""
BLOCKS = 10
DRIFT_RATIO = 1.5
"""A significant trend is a drift if the median changes by this factor from the first to the last fifth."""
DRIFT_P_VALUE = 0.01
SPIKE_SIGMAS = 6.0
SIGMAS_PER_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
NARROWEST, WIDEST = 21, 101
"""Norms in the window of the running median that a spike is judged by; a fifth of the log in between."""
LEAST_SIDE = 5
"""The window of a running median holds at least this many norms on either side, if the log has them."""
TREND_BLOCKS = 300
LEAST_FALL = 0.05
"""If a training learns, its loss falls by at least this share from the first fifth to the last."""
MANY_EQUAL = 0.05
"""With at least this share within .1 % of the largest, norms look clipped."""
FEWEST_EQUAL = 3
EQUAL_DIGITS = 4
"""Significant digits for comparing norms that rounding may have made equal."""
LONG_TAIL = 10
"""With at least this many non-finite norms at the end of a log, the training broke down."""


def times_text(ratio: float) -> str:
    """A ratio of norms with the digits that matter.

    >>> times_text(1.503), times_text(1471.2), times_text(1.04e6)
    ('1.5', '1,471', '1.0e+06')
    """
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:,.0f}" if ratio < 1e6 else f"{ratio:.1e}"


def running_median(values: Floats, window: int) -> Floats:
    """(n,) median of the values around each one, itself included.

    Towards the ends the window shrinks on both sides alike, to 5 values on either side if there are that many.

    Args:
        values: (n,), n > 0, finite.
        window: >= 1, number of values; an even one counts as one more.
    """
    count = len(values)
    half = min(window // 2, (count - 1) // 2)
    medians = np.asarray(median_filter(values, 2 * half + 1), dtype=np.float64)
    for at in (*range(half), *range(count - half, count)):
        side = min(half, max(min(at, count - 1 - at), LEAST_SIDE))
        medians[at] = np.median(values[max(at - side, 0) : at + side + 1])
    return medians


def without_trend(norms: Floats) -> Floats:
    """(n,) log of each norm over its trend: the running median of the logs over a third of the log.

    With more than 300 norms, the medians of 300 blocks are smoothed instead, with straight lines between their middles.

    Args:
        norms: (n,), n > 0, finite and above zero.
    """
    logs = np.log(norms)
    blocks = np.array_split(logs, min(len(logs), TREND_BLOCKS))
    ends = np.cumsum([len(block) for block in blocks])
    middles = ends - (np.array([len(block) for block in blocks]) + 1) / 2
    trend = running_median(np.array([np.median(block) for block in blocks]), len(blocks) // 3)
    return np.asarray(logs - np.interp(np.arange(len(logs)), middles, trend))


@dataclass(frozen=True)
class Drift:
    """The change of the norms over the trace.

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
        """Median of the last fifth over that of the first, limited to 1e-304 to 1e304."""
        return exp(min(max(self.log_ratio, -LARGEST_LOG_RATIO), LARGEST_LOG_RATIO))

    @property
    def is_large(self) -> bool:
        """True if the median changes enough to matter, by a trend or by chance."""
        return abs(self.log_ratio) > log(DRIFT_RATIO)

    @property
    def is_there(self) -> bool:
        """True if there is a trend, and it is large enough to matter."""
        return self.p_value < DRIFT_P_VALUE and self.is_large

    def __str__(self) -> str:
        change = f"by a factor of {max(self.ratio, 1 / self.ratio):.2g} ({'up' if self.ratio > 1 else 'down'})"
        if self.is_there:
            return f"the median norm changes {change}, so no constant stays right"
        return (
            f"the median norm changes {change}, but not steadily enough to tell a trend from chance "
            f"(p = {self.p_value:.2g})"
        )


def log_drift(norms: Floats) -> float:
    """Log of the median of the last fifth of the norms, which are above zero, over that of the first."""
    fifth = max(len(norms) // 5, 1)
    return log(np.median(norms[-fifth:])) - log(np.median(norms[:fifth]))


def drift_of(norms: Floats) -> Drift:
    """Judge how norms, which are above zero, change with time."""
    blocks = [float(np.median(block)) for block in np.array_split(norms, BLOCKS)]
    tau, p_value = stats.kendalltau(np.arange(BLOCKS), blocks)
    known = isfinite(tau)  # NaN if all blocks are equal
    return Drift(log_drift(norms), float(tau) if known else 0.0, float(p_value) if known else 1.0)


@dataclass(frozen=True)
class Tail:
    """The tail of the norms above the running median; every norm is tested.

    A norm is a spike if it is above 3 times the running median, and the log of that ratio is above 6 robust standard
    deviations (1.4826 times its median absolute value): neither a drift nor other spikes hide it or make one.

    Attributes:
        ratio: percentile 99 of the norms over their running median.
        spikes: (n,) bool.
    """

    ratio: float
    spikes: NDArray[np.bool_]

    @property
    def is_large(self) -> bool:
        """True if large norms occur."""
        return bool(self.spikes.any()) or self.ratio > CALM_RATIO


def tail_of(norms: Floats) -> Tail:
    """Judge how far norms reach above their running median, over a fifth of the log, 21 to 101 norms.

    Args:
        norms: (n,), n > 0, finite and above zero.
    """
    logs = np.log(norms)
    rest = logs - running_median(logs, min(max(len(norms) // 5, NARROWEST), WIDEST))
    limit = max(SPIKE_SIGMAS * SIGMAS_PER_MAD * float(np.median(np.abs(rest))), float(np.log(CALM_RATIO)))
    ratio = float(np.exp(min(float(np.percentile(rest, 99)), LARGEST_LOG_RATIO)))
    return Tail(ratio, rest > limit)


def clipped_at(norms: Floats) -> float | None:
    """The largest norm if many norms equal it, which looks like norms after clipping; else None.

    The test: 5 % of the norms and at least three lie within .1 % of the largest, and no other value occurs half as
    often, as one does if norms were rounded.

    Args:
        norms: (n,), n > 0, finite and above zero.
    """
    largest = float(norms.max())
    equal = norms >= largest * (1 - 1e-3)
    pile = int(equal.sum())
    if pile < max(FEWEST_EQUAL, MANY_EQUAL * len(norms)):
        return None
    others = [f"{norm:.{EQUAL_DIGITS}g}" for norm in norms[~equal].tolist()]
    most = int(np.unique(others, return_counts=True)[1].max()) if others else 0
    return largest if 2 * most <= pile else None


def useless_norms(trace: NormTrace) -> list[str]:
    """A sentence each on the number of NaN, infinite and zero norms, if there are any."""
    kinds = {"NaN": np.isnan(trace.norms), "infinite": np.isinf(trace.norms), "zero": trace.norms == 0}
    counts = {name: int(at.sum()) for name, at in kinds.items()}
    return [
        f"{count} of {len(trace)} norms {'is' if count == 1 else 'are'} {name}"
        for name, count in counts.items()
        if count
    ]


def broken_from(trace: NormTrace) -> int | None:
    """Step from which on no norm is finite, if there are at least ten such norms; else None."""
    finite = np.flatnonzero(np.isfinite(trace.norms))
    first = int(finite[-1]) + 1 if len(finite) else 0
    return int(trace.steps[first]) if len(trace) - first >= LONG_TAIL else None


@dataclass(frozen=True)
class LossFinding:
    """The finding on the losses of a log.

    Attributes:
        state: "missing": fewer than 20 finite ones; "constant": all equal, or half of them zero; "about zero": of both
            signs, or zero and not falling, as a loss that is zero by design; "falls", "does not fall": by 5 %, from
            the median of the first fifth to that of the last.
        text: the finding in words.
    """

    state: Literal["missing", "constant", "about zero", "falls", "does not fall"]
    text: str

    @property
    def is_usable(self) -> bool:
        """True if the loss shows how training goes."""
        return self.state in ("falls", "does not fall")


def loss_of(trace: NormTrace) -> LossFinding:
    """Judge the losses of a log."""
    losses = trace.losses[np.isfinite(trace.losses)] if trace.losses is not None else np.empty(0)
    if len(losses) < LEAST_NORMS:
        return LossFinding("missing", f"the log has {len(losses) or 'no'} finite losses")
    low, high = float(losses.min()), float(losses.max())
    if low == high:
        return LossFinding("constant", f"the logged loss never changes ({low:.4g} in {len(losses)} steps)")
    zero = int((losses == 0).sum())
    if 2 * zero >= len(losses):
        return LossFinding("constant", f"the loss is zero in {zero} of {len(losses)} steps")
    fifth = len(losses) // 5
    first, last = float(np.median(losses[:fifth])), float(np.median(losses[-fifth:]))
    medians = f"median of the first fifth {first:.4g}, of the last {last:.4g}"
    falls = last <= first - LEAST_FALL * abs(first)
    if low < 0 < high or (low == 0 and not falls):
        return LossFinding("about zero", f"the loss lies about zero ({low:.4g} to {high:.4g})")
    if falls:
        return LossFinding("falls", f"the loss falls ({medians})")
    return LossFinding("does not fall", f"the loss {'hardly falls' if last < first else 'does not fall'} ({medians})")
