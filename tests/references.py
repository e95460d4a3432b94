"""Slow and obvious oracles, written from the papers and from the specifications of the rules.

Every threshold list holds the threshold in force at each step, from the first step on which the rule has a threshold
of its own: step `warmup_steps` for rules that collect first.
"""

from collections.abc import Iterable, Sequence
from math import exp, fsum, inf, isfinite, log, nan

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
    percentile: float = 10,
    rate: float = 0.2,
    cut: float = 0.8,
    fast: float = 0.8,
    slow: float = 0.97,
    start: float = 0.3,
    floor: float = 0.1,
    lift: float = 1.1,
    margin: float = 0.5,
    without_loss: float = 25,
) -> list[float]:
    """Slow start at a share of the first norm (the first step is clipped to it), then tracker, lift or cut, floor.

    After each later step the tracker learns the norm, at the percentile `without_loss` where the step has no loss. The
    averages of the loss start at the first loss, its variance at zero, and the distance of each loss counts from the
    slow average before it. With a loss, the threshold is cut where the fast average lies above the slow one by more
    than `margin` deviations; else it is lifted where the norm lay above it and the fast average below the slow one by
    more than `margin` deviations, corrected for the start at zero. The floor is a share of a second tracker, which
    starts at the first norm and is neither lifted nor cut. Both begin anew after ten norms of which all but two are
    more than ten times the first.
    """
    threshold, steady = start * norms[0], norms[0]
    thresholds = [threshold, threshold]
    fast_average = slow_average = losses[0]
    variance, seen = 0.0, 0
    for norm, loss in zip(norms[1:-1], losses[1:-1], strict=True):
        if loss is not None and slow_average is None:
            fast_average = slow_average = loss
        elif loss is not None:
            variance = slow * variance + (1 - slow) * (loss - slow_average) ** 2
            fast_average = fast * fast_average + (1 - fast) * loss
            slow_average = slow * slow_average + (1 - slow) * loss
            seen += 1
        q = (without_loss if loss is None else percentile) / 100
        clipped = norm > threshold
        threshold *= exp(rate * ((1.0 if clipped else 0.0) - (1 - q)))
        steady *= exp(rate * ((1.0 if norm > steady else 0.0) - (1 - q)))
        if loss is not None and seen:
            rise = fast_average - slow_average
            if rise > margin * variance**0.5:
                threshold *= cut
            elif clipped and -rise > margin * (variance / (1 - slow**seen)) ** 0.5:
                threshold *= lift
        threshold = max(threshold, floor * steady)
        if len(thresholds) == 10:
            usual = sorted(norms[:10])[2]
            if usual > 10 * norms[0]:
                threshold, steady = start * usual, usual
        thresholds.append(threshold)
    return thresholds


def probing_thresholds(
    norms: Sequence[float],
    losses: Sequence[float | None],
    *,
    percentile: float = 90,
    lowest: float = 10,
    window: int = 100,
    start: float = 0.3,
    growth: float = 0.03,
    margin: float = 0.5,
    setback: float = 0.1,
    cut: float = 0.8,
    floor: float = 0.1,
    step_back: float = 40,
    pace: float = 0.5,
    memory: float = 0.7,
    pause: int = 10,
    patience: int = 5,
) -> list[float]:
    """Slow start at a share of the first norm, then a percentile that opens, or a cut and a step back.

    In each later step the loss, if any, is looked at first: where the fast average lies above the slow one by more than
    `margin` deviations, and by more than the share `setback` of all that the slow one has ever moved, the threshold is
    cut, not below the floor unless it lies there already, and the percentile steps back if the last time was more than
    `pause` steps ago; but where `patience` times came within a window of the one before, it does not step back, and the
    loss counts no more until the percentile is open and the last rise is more than a window ago. In all other steps it
    opens, and the threshold is that percentile, or a little more than before where that is less. After ten losses
    beyond the first a loss counts as at most 2.5 deviations away from the slow average, corrected for the start at
    zero.
    """
    threshold = start * norms[0]
    thresholds = [threshold, threshold]
    q, opening, last_step_back, in_vain = lowest, pace, -inf, 0
    fast_average = slow_average = losses[0]
    variance, seen = 0.0, 0
    levels = [] if slow_average is None else [slow_average]
    for step, loss in enumerate(losses[1:-1], 1):
        if loss is not None and slow_average is None:
            fast_average = slow_average = loss
            levels.append(loss)
        elif loss is not None:
            if seen >= 10:
                most = 2.5 * (variance / (1 - 0.97**seen)) ** 0.5
                loss = min(max(loss, slow_average - most), slow_average + most)
            variance = 0.97 * variance + 0.03 * (loss - slow_average) ** 2
            fast_average = 0.8 * fast_average + 0.2 * loss
            slow_average = 0.97 * slow_average + 0.03 * loss
            levels.append(slow_average)
            seen += 1
        recent = norms[max(0, step + 1 - window) : step + 1]
        moved = max(levels) - min(levels) if levels else 0.0
        rise = 0.0 if loss is None else fast_average - slow_average
        rises = rise > margin * variance**0.5 and rise > setback * moved
        if rises and in_vain < patience:
            least = floor * float(np.median(recent))
            threshold = max(cut * threshold, least) if threshold > least else threshold
            if step - last_step_back > pause:
                in_vain = in_vain + 1 if step - last_step_back <= window else 0
                last_step_back = step
                if in_vain == patience:
                    opening = pace
                else:
                    q, opening = max(lowest, q - step_back), opening * memory
        else:
            last_step_back = step if rises else last_step_back
            q = min(percentile, q + opening)
            if q == percentile:
                opening = pace
                in_vain = in_vain if step - last_step_back <= window else 0
            threshold = min(float(np.percentile(recent, q)), threshold * (1 + growth))
        if len(thresholds) == 10:
            usual = sorted(norms[:10])[2]
            threshold = start * usual if usual > 10 * norms[0] else threshold
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


def percentile_clipping_limits(norms: Sequence[float], index: int, slots: int = 100) -> list[float]:
    """bitsandbytes: a ring of squared norms, all slots set by the first; the one at `index` of the sorted ring.

    Step t, counted from 1, is written to slot t % 100 before the limit is read: the current norm counts.
    """
    ring = np.full(slots, norms[0] ** 2)
    limits = []
    for step, norm in enumerate(norms, 1):
        ring[step % slots] = norm**2
        limits.append(float(np.sqrt(np.sort(ring)[index])))
    return limits


def adaptive_grad_clipper_thresholds(
    norms: Sequence[float], percentile: float = 95, window: int = 1000, max_norm: float = inf
) -> list[float]:
    """TRELLIS: max_norm until `window` finite norms are known, then a percentile of the last, max_norm at most."""
    stored = np.array([norm for norm in norms if isfinite(norm)])
    known, limit, thresholds = 0, max_norm, []
    for norm in norms:
        thresholds.append(limit)
        known += isfinite(norm)
        if known >= window and isfinite(norm):
            limit = min(float(np.percentile(stored[known - window : known], percentile)), max_norm)
    return thresholds


def zclip(
    norms: Sequence[float],
    *,
    z_threshold: float = 2.5,
    decay: float = 0.97,
    form: str = "reciprocal",
    epsilon: float = 1e-6,
    warmup_steps: int = 25,
    max_norm: float = inf,
) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """ZClip 2025, each step after the warm-up: threshold, norm after clipping, and (mean, variance) before the step.

    The threshold is the norm above which the rule acts: where z = (n - mean) / (std + epsilon) passes `z_threshold`,
    and in the form "max" where n passes mean + z_threshold std. The norm left is at most `max_norm`; the moments
    learn the rule's own value, which knows no `max_norm`.
    """
    mean = float(np.mean(norms[:warmup_steps]))
    variance = float(np.var(norms[:warmup_steps]))
    thresholds, left, moments = [], [], []
    for norm in norms[warmup_steps:]:
        moments.append((mean, variance))
        std = variance**0.5
        z = (norm - mean) / (std + epsilon)
        learned = norm
        if form == "max":
            thresholds.append(mean + z_threshold * std)
            learned = min(norm, mean + z_threshold * std)
        else:
            thresholds.append(mean + z_threshold * (std + epsilon))
            if z > z_threshold:
                learned = mean if form == "mean" else mean + z_threshold * std / (z / z_threshold)
        left.append(min(learned, max_norm))
        mean = decay * mean + (1 - decay) * learned
        variance = decay * variance + (1 - decay) * (learned - mean) ** 2
    return thresholds, left, moments


def open_sora_thresholds(norms: Sequence[float], mean: float, variance: float, decay: float = 0.99) -> list[float]:
    """Open-Sora Plan 1.5: mean + 3 std; a norm above it is not learned."""
    thresholds = []
    for norm in norms:
        thresholds.append(mean + 3.0 * variance**0.5)
        if norm <= thresholds[-1]:
            mean = decay * mean + (1 - decay) * norm
            variance = decay * variance + (1 - decay) * (mean - norm) ** 2
    return thresholds


def skip_step_thresholds(
    norms: Sequence[float], sigmas: float = 6, window: int = 128, known_before: int = 64
) -> list[float]:
    """OLMo-core: mean + sigmas std (unbiased) of the last `window` norms before this step, skipped ones included."""
    history = np.array(norms)
    thresholds = []
    for step in range(known_before, len(norms)):
        before = history[max(0, step - window) : step]
        thresholds.append(float(before.mean() + sigmas * before.std(ddof=1)))
    return thresholds


def skip_step_left_out(
    losses: Sequence[float], norms: Sequence[float], sigmas: float = 6, window: int = 128
) -> list[bool]:
    """OLMo-core's `SkipStepOptimizer.get_step_factor`: whether the factor of each step is 0.

    It keeps the last `window` + 1 losses and norms, those of the step included. Once it has half a window of losses it
    takes a step only if neither is more than `sigmas` deviations (`torch.std_mean`) above the mean of the others.
    """
    left_out, kept_losses, kept_norms = [], [], []
    for loss, norm in zip(losses, norms, strict=True):
        kept_losses = [*kept_losses, loss][-window - 1 :]
        kept_norms = [*kept_norms, norm][-window - 1 :]
        if len(kept_losses) < max(2, window // 2):
            left_out.append(False)
            continue
        takes = True
        for values in (kept_losses, kept_norms):
            before = np.array(values[:-1])
            deviation = before.std(ddof=1) if len(before) > 1 else nan
            takes = takes and bool(values[-1] - before.mean() <= sigmas * deviation)
        left_out.append(not takes)
    return left_out


def scaled_adam_norm(weights: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> float:
    """icefall's ScaledAdam: the norm of all gradients together, each times the RMS (1e-5 at least) of its parameter."""
    total = 0.0
    for weight, gradient in zip(weights, gradients, strict=True):
        rms = max(float(np.sqrt(np.mean(np.square(weight)))), 1e-5)
        total += float(np.sum(np.square(gradient * rms)))
    return total**0.5


def adagc(
    norms_per_step: Sequence[Sequence[float]],
    *,
    relative: float = 1.05,
    absolute: float = 1.0,
    decay: float = 0.98,
    warmup_steps: int = 100,
) -> tuple[list[list[float]], list[list[float]]]:
    """AdaGC 2025, several tensors: each tensor's norm after clipping, and its gamma after the step, step by step.

    Warm-up: h = min(1, absolute / global norm), gamma_i = min(gamma_i, |h g_i|), at first |h g_i|. Later:
    h_i = min(1, relative gamma_i / |g_i|), gamma_i = decay gamma_i + (1 - decay) |h_i g_i|.
    """
    gammas = [inf] * len(norms_per_step[0])
    left, history = [], []
    for step, norms in enumerate(norms_per_step):
        if step < warmup_steps:
            together = min(1.0, absolute / float(np.linalg.norm(norms)))
            clipped = [together * norm for norm in norms]
            gammas = [min(gamma, norm) for gamma, norm in zip(gammas, clipped, strict=True)]
        else:
            clipped = [norm * min(1.0, relative * gamma / norm) for norm, gamma in zip(norms, gammas, strict=True)]
            gammas = [decay * gamma + (1 - decay) * norm for norm, gamma in zip(clipped, gammas, strict=True)]
        left.append(clipped)
        history.append(gammas)
    return left, history


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


def distances_from_the_ideal(figures: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Distance of each candidate of a front from the corner that has the least mean of every figure.

    The unit of a figure is the mean of the candidates' standard deviations over the seeds; where that is not known or
    zero, the largest distance. Figure -> candidate -> seed.
    """
    totals = [0.0] * len(figures[0])
    for figure in figures:
        table = np.array(figure)
        excess = table.mean(axis=1) - table.mean(axis=1).min()
        unit = float(table.std(axis=1, ddof=1).mean()) if table.shape[1] > 1 else 0.0
        unit = unit if unit > 1e-10 else float(excess.max()) or 1.0
        totals = [total + (one / unit) ** 2 for total, one in zip(totals, excess.tolist(), strict=True)]
    return [total**0.5 for total in totals]


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
