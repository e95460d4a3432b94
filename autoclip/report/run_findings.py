"""Findings on the runs of an experiment: how they ended, how often they were clipped, and what their norms show."""

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

import numpy as np

from autoclip.findings import Finding, Level, span
from autoclip.pictures.series import FEWEST_STEPS, Series
from autoclip.report.series import pooled_norms
from autoclip.run_directory import METRICS
from autoclip.sweeps.scoring import learned_nothing
from autoclip.tuning.log_findings import CALM_RATIO, DRIFT_RATIO, LARGEST_LOG_RATIO, log_drift, times_text
from autoclip.tuning.replay import SPIKE_STEPS, spikes

PROMISE_KEPT = 0.1
"""A clip rate this close to the promised one is fine: short runs do not come closer."""
ALWAYS = 0.95
MANY_NONFINITE = 0.01


def status_findings(
    summaries: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str], stepless: Sequence[str] = ()
) -> list[Finding]:
    """How the runs ended.

    Args:
        summaries: run's label -> its `summary.json`, empty if there is no file.
        failed: label -> error of the runs whose task raised.
        stepless: labels of the runs that left no steps.
    """
    found = [Finding("bad", f"{name} failed: {error}") for name, error in failed.items()]
    found += [stepless_finding(stepless)] if stepless else []
    for label, summary in summaries.items():
        status, loss, trivial = (summary.get(name) for name in ("status", "validation_loss", "trivial_loss"))
        if label in failed:
            continue
        if status == "diverged":
            found.append(Finding("bad", f"{label} diverged: loss, norm or parameters were no longer finite"))
        elif status in ("interrupted", None):
            found.append(Finding("note", f"{label} has not ended yet: the figures show the steps taken so far"))
        elif isinstance(loss, int | float) and isinstance(trivial, int | float) and learned_nothing(loss, trivial):
            told = f"its validation loss {loss:.4g} is no better than that of a constant prediction, {trivial:.4g}"
            found.append(Finding("bad", f"{label} learned nothing: {told}"))
    return found or [Finding("good", "every run finished" if len(summaries) > 1 else "the run finished")]


def stepless_finding(stepless: Sequence[str]) -> Finding:
    """The finding on runs that left no steps."""
    reason = f"left out, no {METRICS} that a run wrote: not begun yet, removed or damaged"
    return Finding("note", f"{', '.join(stepless)}: {reason}", {"runs": [*stepless]})


def rate_findings(runs: Sequence[Series], promised: float | None) -> list[Finding]:
    """Compare the clip rates with the promised one; runs with the same result share a sentence."""
    rated = [run for run in runs if np.isfinite(run.thresholds).any() and int(run.active.sum()) >= FEWEST_STEPS]
    grouped: dict[tuple[Level, str], list[Series]] = {}
    for run in rated:
        grouped.setdefault(_judged(run.clip_rate, promised), []).append(run)
    found = []
    for (level, meaning), own in grouped.items():
        rates = {run.label: run.clip_rate for run in own}
        known = [run.mean_coefficient for run in own if np.isfinite(run.mean_coefficient)]
        left = f", with a mean coefficient of {span(known, '.0%')}" if known else ""
        clipped = f"{span([*rates.values()], '.0%')} of the steps after the warm-up were clipped"
        found.append(Finding(level, f"{', '.join(rates)}: {clipped}{left}{meaning}", {"clip_rates": rates}))
    return found


def norm_findings(runs: Sequence[Series]) -> list[Finding]:
    """Outliers and drift of the norms, and numbers that are not finite."""
    found = []
    for run in runs:
        broken = ~np.isfinite(run.norms)
        count, skipped = int(broken.sum()), int((run.skipped & broken).sum())
        if count:
            told = f"the norm was not finite in {count} of {len(run)} steps ({count / len(run):.1%})"
            level: Level = "bad" if count > MANY_NONFINITE * len(run) else "note"
            found.append(Finding(level, f"{run.label}: {told}; {skipped} of them were skipped", {"nonfinite": count}))
    norms = pooled_norms(runs)
    if len(norms) < FEWEST_STEPS:
        return found
    median, tail, largest = (float(norm) for norm in np.percentile(norms, [50, 99, 100]))
    figures = {"median": median, "percentile_99": tail, "largest": largest}
    if tail > CALM_RATIO * median:
        told = (
            f"large norms occur: percentile 99 of the norms is {times_text(tail / median)} times the median, the "
            f"largest norm {times_text(largest / median)} times; a threshold near the median bounds them"
        )
        found.append(Finding("note", told, figures))
    else:
        told = f"the norms are calm: percentile 99 is {tail / median:.2g} times the median"
        found.append(Finding("good", told, figures))
    spiky = [(spikes(run.norms), run) for run in runs]
    all_spikes = sum(int(at.sum()) for at, _ in spiky)
    if all_spikes:
        caught = sum(int((at & (run.clipped | run.skipped)).sum()) for at, run in spiky)
        what = f"spikes (norms above mean + 6 standard deviations of the {SPIKE_STEPS} before)"
        told = f"{caught} of {all_spikes} {what} were clipped"
        found.append(Finding("good" if caught == all_spikes else "note", told, {"spikes": all_spikes}))
    return found + _drifts(runs)


def _judged(rate: float, promised: float | None) -> tuple[Level, str]:
    """Judge a clip rate and say what it means."""
    if promised is not None:
        if abs(rate - promised) <= PROMISE_KEPT:
            return "good", f"; the percentile promises {promised:.0%}"
        return "note", (
            f"; the percentile promises {promised:.0%}: the norms {'fell' if rate < promised else 'rose'} faster than "
            f"the threshold followed, or the training is too short for it to settle"
        )
    if rate == 0:
        return "note", ": this is the same as no clipping"
    if rate >= ALWAYS:
        return "note", ": nearly every step has the same length, and the threshold acts as a learning rate"
    return "good", ""


def _drifts(runs: Sequence[Series]) -> list[Finding]:
    moved: dict[str, dict[str, float]] = {}
    for run in runs:
        norms = run.norms[run.usable]
        drift = log_drift(norms) if len(norms) // 5 >= FEWEST_STEPS else 0.0
        if abs(drift) > log(DRIFT_RATIO):
            factor = exp(min(abs(drift), LARGEST_LOG_RATIO))
            moved.setdefault("rose" if drift > 0 else "fell", {})[run.label] = factor
    found = []
    for direction, factors in moved.items():
        ends = " to ".join(dict.fromkeys(map(times_text, (min(factors.values()), max(factors.values())))))
        told = (
            f"{', '.join(factors)}: from the first fifth of the training to the last the norms {direction} by a factor "
            f"of {ends}: no constant threshold stays right, but one that follows does"
        )
        found.append(Finding("note", told, {"drifts": factors}))
    return found
