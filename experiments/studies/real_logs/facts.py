"""What the norms of one run are like, and what each rule would have done to them."""

from math import atanh, exp, sqrt, tanh
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from autoclip.policies import (
    POLICIES,
    AutoClip,
    CenterMultiple,
    Fixed,
    FixedPercentile,
    LossAwareQuantile,
    Policy,
    ProbingQuantile,
    RunningQuantile,
    SkipStep,
    ZClip,
)
from autoclip.records import clip_rate
from autoclip.traces import NormTrace
from autoclip.tuning.intervals import effective_count
from autoclip.tuning.log_findings import LEAST_NORMS, log_drift
from autoclip.tuning.replay import replay
from autoclip.tuning.suggest import THRESHOLDS, NoAdviceError, suggest
from experiments.studies.drift.replays import promised_rate

Floats = NDArray[np.float64]

RULES: dict[str, Policy] = {
    "fixed 1": Fixed(1.0),
    "fixed 5": Fixed(5.0),
    "fixed 10": Fixed(10.0),
    "fixed percentile 50": FixedPercentile(percentile=50),
    "fixed percentile 90": FixedPercentile(percentile=90),
    "running quantile 50": RunningQuantile(percentile=50),
    "running quantile 90": RunningQuantile(percentile=90),
    "probing quantile": ProbingQuantile(),
    "loss-aware quantile": LossAwareQuantile(),
    "AutoClip p10": AutoClip(percentile=10),
    "ZClip": ZClip(),
    "SkipStep": SkipStep(),
    "center multiple 2": CenterMultiple("median", multiple=2.0),
}
LEAST_ACTIVE = 50
"""Steps after the warm-up, without which a clip rate says nothing."""
NARROWEST, WIDEST = 21, 101
"""Norms in the window of the running median that is taken out as the trend."""
HALVED = (50, 90)
"""Percentiles that are read off the first half."""


def described(run: NormTrace) -> dict[str, object]:
    """The row of a run: size, drift, tails and memory of its norms, and what holds of its first half in its second.

    Args:
        run: of at least 20 norms, all above zero.
    """
    norms = run.norms
    rest = detrended(norms)
    with_trend = effective_count(np.log(norms))
    trend, low, high = rank_trend(norms, with_trend)
    middle = float(np.median(rest))
    return {
        "trace": run.source,
        "norms": len(norms),
        "stride": run.stride,
        "with_loss": run.losses is not None,
        **{f"p{percentile}": float(np.percentile(norms, percentile)) for percentile in (5, 50, 95)},
        **{f"above_{limit:g}": float((norms > limit).mean()) for limit in THRESHOLDS},
        "drift": exp(log_drift(norms)),
        "trend": trend,
        "trend_low": low,
        "trend_high": high,
        "p99_over_median": exp(float(np.percentile(rest, 99)) - middle),
        "largest_over_median": exp(float(rest.max()) - middle),
        "largest_later": exp(float(rest[len(rest) // 20 :].max()) - middle),
        "lag_1": lag_1(rest),
        "independent": effective_count(rest),
        "independent_with_trend": with_trend,
        **in_second_half(run),
    }


def replayed(run: NormTrace) -> list[dict[str, object]]:
    """A row for each rule: its clip rate and mean coefficient over the steps after its warm-up, and its promise."""
    rows: list[dict[str, object]] = []
    for name, policy in RULES.items():
        result = replay(run.norms, policy, losses=run.losses)
        told = int(result.active.sum()) >= LEAST_ACTIVE
        half = result.active & (np.arange(len(run)) >= len(run) // 2)
        rows.append(
            {
                "trace": run.source,
                "rule": name,
                "with_loss": run.losses is not None if policy.reads_loss else None,
                "promised": promised_rate(policy),
                "active_steps": int(result.active.sum()),
                "clip_rate": result.clip_rate if told else None,
                "mean_coefficient": result.mean_coefficient if told else None,
                "second_half": _rate(result.clipped, half),
            }
        )
    return rows


def in_second_half(run: NormTrace) -> dict[str, object]:
    """How often what is read off the first half clips in the second.

    The percentiles are fixed thresholds; the suggested policy is replayed from the first step on.
    """
    half = len(run) // 2
    first, second = run.norms[:half], run.norms[half:]
    told = half >= LEAST_NORMS
    row: dict[str, object] = {
        f"held_{percentile}": float((second > np.percentile(first, percentile)).mean()) if told else None
        for percentile in HALVED
    }
    whole = _suggested(run)
    row |= {"suggested": whole["kind"] if whole else None, "suggested_first": None, "promised": None, "realised": None}
    losses = None if run.losses is None else run.losses[:half]
    section = _suggested(NormTrace(run.steps[:half], first, run.source, losses)) if told else {}
    if section:
        kind = section.pop("kind")
        policy = POLICIES[kind](**section)
        result = replay(run.norms, policy, losses=run.losses)
        row["suggested_first"] = kind
        row["promised"] = promised_rate(policy)
        row["realised"] = _rate(result.clipped, result.active & (np.arange(len(run)) >= half))
    return row


def _suggested(run: NormTrace) -> dict[str, Any]:
    """The policy section that is suggested; empty where none is."""
    try:
        return dict(suggest(run).policy)
    except NoAdviceError:
        return {}


def detrended(norms: Floats) -> Floats:
    """(n,) log of each norm over the running median about it.

    The window is a fifth of the run, 21 to 101 norms; at the ends it holds what there is of it.
    """
    half = min(max(len(norms) // 5, NARROWEST), WIDEST) // 2
    medians = [np.median(norms[max(at - half, 0) : at + half + 1]) for at in range(len(norms))]
    return np.asarray(np.log(norms) - np.log(medians))


def lag_1(values: Floats) -> float | None:
    """Correlation of neighbours; None where all are equal."""
    centred = values - values.mean()
    power = float(centred @ centred)
    return float(centred[1:] @ centred[:-1]) / power if power > 0 else None


def rank_trend(norms: Floats, independent: float) -> tuple[float, float, float]:
    """Spearman's rank correlation of the norms with time, and its 95 % interval.

        tanh(atanh(rho) -+ 1.96 sqrt((1 + rho^2 / 2) / (m - 3)))

    Args:
        norms: (n,), in the order of time.
        independent: m, number of independent norms that these are worth, counted with the trend in them, so that slow
            noise is not taken for one; at most 3 tell nothing.

    Reference: Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
    2000, Psychometrika 65(1).
    """
    if norms.min() == norms.max():
        return 0.0, -1.0, 1.0
    rho = float(stats.spearmanr(np.arange(len(norms)), norms).statistic)
    if independent <= 3:
        return rho, -1.0, 1.0
    centre = atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    half = float(stats.norm.ppf(0.975)) * sqrt((1 + rho * rho / 2) / (independent - 3))
    return rho, tanh(centre - half), tanh(centre + half)


def _rate(clipped: NDArray[np.bool_], at: NDArray[np.bool_]) -> float | None:
    count = int(at.sum())
    return clip_rate(int(clipped[at].sum()), count) if count >= LEAST_ACTIVE else None
