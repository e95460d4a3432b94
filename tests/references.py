"""Slow and obvious oracles, written from the papers and from the specifications of the rules.

Every threshold list holds the threshold in force at each step, from the first step on which the rule has a threshold
of its own: step `warmup_steps` for rules that collect first.
"""

from collections.abc import Iterable, Sequence
from math import exp, fsum, inf, isfinite, log

import numpy as np
from scipy.special import betaincinv


def autoclip_thresholds(norms: Sequence[float], percentile: float) -> list[float]:
    """Seetharaman 2020: append the norm, then take the percentile of everything; the current norm counts."""
    history = np.array(norms)
    return [float(np.percentile(history[: step + 1], percentile)) for step in range(len(norms))]


def quantile_clip_thresholds(norms: Sequence[float], percentile: float, window: int | None) -> list[float]:
    """PyPI autoclip 0.2.1, `QuantileClip`: percentile of the norms before this step, the last `window` of them."""
    history = np.array(norms)
    thresholds = [inf]
    for step in range(1, len(norms)):
        oldest = 0 if window is None else max(0, step - window)
        thresholds.append(float(np.percentile(history[oldest:step], percentile)))
    return thresholds


def geometric_quantile(
    records_per_step: Iterable[Sequence[float]], start: float, percentile: float, rate: float
) -> list[float]:
    """Andrew 2019: C <- C exp(-rate (below - q)), below = share of the step's records <= C; C after each step."""
    log_value = log(start)
    values = []
    for records in records_per_step:
        below = sum(record <= exp(log_value) for record in records) / len(records)
        log_value -= rate * (below - percentile / 100)
        values.append(exp(log_value))
    return values


def running_quantile_thresholds(
    norms: Sequence[float], percentile: float, rate: float, warmup_steps: int
) -> list[float]:
    """The geometric tracker with one record a step, started at the percentile of the warm-up's norms."""
    start = float(np.percentile(norms[:warmup_steps], percentile))
    later = geometric_quantile([[norm] for norm in norms[warmup_steps:-1]], start, percentile, rate)
    return [start, *later]


def automatic_warmup_thresholds(norms: Sequence[float]) -> list[float]:
    """Unbounded at the first step, then a running median of rate .1 that starts at the first norm."""
    return [inf, norms[0], *geometric_quantile([[norm] for norm in norms[1:-1]], norms[0], 50, 0.1)]


def fixed_percentile_thresholds(
    norms: Sequence[float], percentile: float, scale: float, warmup_steps: int
) -> list[float]:
    """A percentile of the first `warmup_steps` norms, for ever."""
    frozen = scale * float(np.percentile(norms[:warmup_steps], percentile))
    return [frozen] * (len(norms) - warmup_steps)


def center_multiple_thresholds(
    norms: Sequence[float], center: str, multiple: float, window: int, warmup_steps: int
) -> list[float]:
    """A multiple of the median or the mean of the last `window` norms before this step."""
    middle = {"median": np.median, "mean": np.mean}[center]
    history = np.array(norms)
    return [multiple * float(middle(history[max(0, step - window) : step])) for step in range(warmup_steps, len(norms))]


def loss_aware_thresholds(
    norms: Sequence[float],
    losses: Sequence[float | None],
    *,
    percentile: float = 50,
    rate: float = 0.1,
    cut: float = 0.9,
    fast: float = 0.8,
    slow: float = 0.97,
    start: float = 0.3,
    floor: float = 0.1,
) -> list[float]:
    """Slow start at a share of the first norm (the first step is clipped to it), then tracker, cut, floor, in order.

    After each later step the tracker learns the norm; then the threshold is cut where the fast average of the loss
    lies above the slow one. Both averages start at the first loss. A step without a loss is not cut. The floor is a
    share of a second tracker, which starts at the first norm and is never cut.
    """
    threshold, uncut = start * norms[0], norms[0]
    thresholds = [threshold, threshold]
    fast_average = slow_average = losses[0]
    for norm, loss in zip(norms[1:-1], losses[1:-1], strict=True):
        below = 1.0 if norm <= threshold else 0.0
        threshold *= exp(-rate * (below - percentile / 100))
        uncut *= exp(-rate * ((1.0 if norm <= uncut else 0.0) - percentile / 100))
        if loss is not None:
            fast_average = loss if fast_average is None else fast * fast_average + (1 - fast) * loss
            slow_average = loss if slow_average is None else slow * slow_average + (1 - slow) * loss
            if fast_average > slow_average:
                threshold *= cut
        threshold = max(threshold, floor * uncut)
        thresholds.append(threshold)
    return thresholds


def decayed_moments(
    values: Sequence[float], decay: float, mean: float | None = None, variance: float = 0.0
) -> list[tuple[float, float]]:
    """ZClip 2025: mean <- a mean + (1-a) x, then var <- a var + (1-a) (x - new mean)^2; both after each value."""
    moments = []
    for value in values:
        if mean is None:
            mean = value
        else:
            mean = decay * mean + (1 - decay) * value
            variance = decay * variance + (1 - decay) * (value - mean) ** 2
        moments.append((mean, variance))
    return moments


def clip_coefficient(norm: float, threshold: float) -> float:
    """torch's c / (norm + 1e-6), with a smaller constant below c = 1e-3; 1 at or below the threshold."""
    return threshold / (norm + min(1e-6, 1e-3 * threshold)) if norm > threshold else 1.0


def total_norm(values: Iterable[float], order: float = 2.0) -> float:
    """p-norm of finite numbers: the powers of the values over the largest, summed without rounding error."""
    magnitudes = [abs(value) for value in values]
    largest = max(magnitudes, default=0.0)
    if largest == 0 or order == inf:
        return largest
    return largest * fsum((magnitude / largest) ** order for magnitude in magnitudes) ** (1 / order)


def paired_uncertainty(values: Sequence[Sequence[float]], confidence: float = 0.95) -> float:
    """Two-way analysis of variance without interaction: half the interval of the difference of two rows' means.

    The linear model value = row + column is fitted by least squares; what is left over, divided by the degrees of
    freedom that are left, is the variance of one value. Student's quantile is that of the incomplete beta function.
    """
    table = np.array(values)
    rows, columns = table.shape
    design = np.zeros((table.size, rows + columns))
    for place, (row, column) in enumerate(np.ndindex(rows, columns)):
        design[place, row] = design[place, rows + column] = 1
    freedom = table.size - int(np.linalg.matrix_rank(design))
    if freedom == 0:
        return inf
    fitted = design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
    variance = float(((table.ravel() - fitted) ** 2).sum()) / freedom
    quantile = (freedom * (1 / betaincinv(freedom / 2, 0.5, 1 - confidence) - 1)) ** 0.5
    return float(quantile * (variance * (1 / columns + 1 / columns)) ** 0.5)


def steps_until(losses: Sequence[float], target: float) -> int | None:
    """Steps until the average of the losses with decay .9, begun at the first one, is at most the target."""
    average = losses[0] if losses else inf
    for step, loss in enumerate(losses, 1):
        average = average if step == 1 else 0.9 * average + 0.1 * loss
        if not isfinite(loss):
            return None
        if average <= target:
            return step
    return None
