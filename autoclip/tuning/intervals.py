"""Confidence intervals of percentiles and shares of norms that resemble their neighbours."""

from dataclasses import dataclass
from math import ceil, inf, isfinite, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LAGS_PER_TIME = 5.0


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval.

    Attributes:
        value: the estimate.
        low: at least 0, the only known bound of some percentiles of positive norms.
        high: inf: unknown.
    """

    value: float
    low: float
    high: float

    def span(self, form: str) -> str:
        """Both ends in a format; a word for an upper end that is not known."""
        return f"{self.low:{form}} to {format(self.high, form) if isfinite(self.high) else 'unknown'}"


def effective_count(values: NDArray[np.float64]) -> float:
    """Number of independent values with a mean as certain as that of these values, in [1, n].

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

    For independent values of any distribution, the number of those below the quantile is binomial. With a probability
    of at most 2.5 % it is less than the lower rank, and with at most 2.5 % it is the upper rank or more. If the values
    are worth fewer, the ranks are those of that many independent values, spread over all.

    Args:
        share: in (0, 1).
        count: number of values.
        effective: number of independent ones that they are worth, in [1, count].

    Returns:
        The lower rank (0: the interval is open there) and the upper rank (count + 1: open there).

    Reference: David and Nagaraja, "Order Statistics", 2003, section 7.1.
    """
    worth = int(effective)
    low, high = (int(rank) for rank in stats.binom.ppf([0.025, 0.975], worth, share))
    return (
        (low - 1) * count // worth + 1 if low > 0 else 0,
        ceil((high + 1) * count / worth) if high < worth else count + 1,
    )


def percentile_interval(norms: NDArray[np.float64], percentile: float, effective: float) -> Interval:
    """A percentile of ascending, positive norms that are worth `effective` independent ones, see `interval_ranks`."""
    low, high = interval_ranks(percentile / 100, len(norms), effective)
    return Interval(
        float(np.percentile(norms, percentile)),
        float(norms[low - 1]) if low > 0 else 0.0,
        float(norms[high - 1]) if high <= len(norms) else inf,
    )


def share_interval(share: float, count: float) -> Interval:
    """Wilson's 95 % interval of a share of `count` independent cases."""
    z = float(stats.norm.ppf(0.975))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(float(share), max(0.0, centre - half), min(1.0, centre + half))
