"""From figures to sentences: what is normal, and what is not."""

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

import numpy as np

from autoclip.flow import GradientFlow, by_verdict
from autoclip.pictures.series import FEWEST_STEPS, Series
from autoclip.report.page import Level, Reading
from autoclip.report.series import pooled_norms
from autoclip.run_directory import METRICS
from autoclip.sweeps.scoring import learned_nothing
from autoclip.tuning.log_findings import CALM_RATIO, DRIFT_RATIO, LARGEST_LOG_RATIO, log_drift, times_text
from autoclip.tuning.replay import SPIKE_STEPS, spikes

PROMISE_KEPT = 0.1
"""A clip rate this close to the promised one is fine: short runs do not come closer."""
ALWAYS = 0.95
MANY_NONFINITE = 0.01
FLOW_LEVELS: dict[str, Level] = {"healthy": "good", "undetermined": "note"}


def status_readings(
    summaries: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str], stepless: Sequence[str] = ()
) -> list[Reading]:
    """Sentences on how the runs ended.

    Args:
        summaries: run's label -> its `summary.json`, empty if there is no file.
        failed: label -> error of the runs whose task raised.
        stepless: labels of the runs that left no steps.
    """
    found = [Reading("bad", f"{name} failed: {error}") for name, error in failed.items()]
    found += [Reading("note", told_of(stepless))] if stepless else []
    for label, summary in summaries.items():
        if label in failed:
            continue
        status = summary.get("status")
        loss, trivial = summary.get("validation_loss"), summary.get("trivial_loss")
        if status == "diverged":
            found.append(Reading("bad", f"{label} diverged: loss, norm or parameters were no longer finite"))
        elif status in ("interrupted", None):
            found.append(Reading("note", f"{label} has not ended yet: the figures show the steps taken so far"))
        elif isinstance(loss, int | float) and isinstance(trivial, int | float) and learned_nothing(loss, trivial):
            found.append(
                Reading(
                    "bad",
                    f"{label} learned nothing: its validation loss {loss:.4g} is no better than that of a constant "
                    f"prediction, {trivial:.4g}",
                )
            )
    if not found:
        found.append(Reading("good", "every run finished" if len(summaries) > 1 else "the run finished"))
    return found


def told_of(stepless: Sequence[str]) -> str:
    """The sentence on runs that left no steps."""
    return f"{', '.join(stepless)}: left out, no {METRICS} that a run wrote: not begun yet, removed or damaged"


def rate_readings(runs: Sequence[Series], promised: float | None) -> list[Reading]:
    """Compare the clip rates with the promised one; runs with the same result share a sentence."""
    rated = [run for run in runs if np.isfinite(run.thresholds).any() and int(run.active.sum()) >= FEWEST_STEPS]
    grouped: dict[tuple[Level, str], list[Series]] = {}
    for run in rated:
        grouped.setdefault(_judged(run.clip_rate, promised), []).append(run)
    return [
        Reading(
            level,
            f"{_names(own)}: {_range([run.clip_rate for run in own])} of the steps after the warm-up were "
            f"clipped{_left(own)}{meaning}",
        )
        for (level, meaning), own in grouped.items()
    ]


def norm_readings(runs: Sequence[Series]) -> list[Reading]:
    """Sentences on the norms: outliers, drift, numbers that are not finite."""
    found: list[Reading] = []
    for run in runs:
        broken = int((~np.isfinite(run.norms)).sum())
        if broken:
            share = broken / len(run)
            found.append(
                Reading(
                    "bad" if share > MANY_NONFINITE else "note",
                    f"{run.label}: the norm was not finite in {broken} of {len(run)} steps ({share:.1%}); "
                    f"{int((run.skipped & ~np.isfinite(run.norms)).sum())} of them were skipped",
                )
            )
    norms = pooled_norms(runs)
    if len(norms) < FEWEST_STEPS:
        return found
    median, tail, largest = (float(norm) for norm in np.percentile(norms, [50, 99, 100]))
    if tail > CALM_RATIO * median:
        found.append(
            Reading(
                "note",
                f"large norms occur: percentile 99 of the norms is {times_text(tail / median)} times the median, the "
                f"largest norm {times_text(largest / median)} times; a threshold near the median bounds them",
            )
        )
    else:
        found.append(Reading("good", f"the norms are calm: percentile 99 is {tail / median:.2g} times the median"))
    spiky = [(spikes(run.norms), run) for run in runs]
    all_spikes = sum(int(at.sum()) for at, _ in spiky)
    if all_spikes:
        caught = sum(int((at & (run.clipped | run.skipped)).sum()) for at, run in spiky)
        found.append(
            Reading(
                "good" if caught == all_spikes else "note",
                f"{caught} of {all_spikes} spikes (norms above mean + 6 standard deviations of the {SPIKE_STEPS} "
                f"before) were clipped",
            )
        )
    return found + _drifts(runs)


def flow_readings(flows: Mapping[str, GradientFlow]) -> list[Reading]:
    """The verdicts on the layers; runs with the same one share a sentence."""
    return [
        Reading(
            FLOW_LEVELS.get(one.verdict, "bad"),
            f"{', '.join(one.labels)}: gradient flow {one.words}: {one.evidence}"
            f"{'. What helps: ' if one.advice else ''}{one.advice}",
        )
        for one in by_verdict(flows)
    ]


def _judged(rate: float, promised: float | None) -> tuple[Level, str]:
    """Judge a clip rate and say what it means."""
    if promised is not None:
        if abs(rate - promised) <= PROMISE_KEPT:
            return "good", f"; the percentile promises {promised:.0%}"
        moved = "fell" if rate < promised else "rose"
        return "note", (
            f"; the percentile promises {promised:.0%}: the norms {moved} faster than the threshold followed, or the "
            f"training is too short for it to settle"
        )
    if rate == 0:
        return "note", ": this is the same as no clipping"
    if rate >= ALWAYS:
        return "note", ": nearly every step has the same length, and the threshold acts as a learning rate"
    return "good", ""


def _drifts(runs: Sequence[Series]) -> list[Reading]:
    moved: dict[str, list[tuple[Series, float]]] = {}
    for run in runs:
        norms = run.norms[run.usable]
        if len(norms) // 5 < FEWEST_STEPS:
            continue
        drift = log_drift(norms)
        if abs(drift) > log(DRIFT_RATIO):
            moved.setdefault("rose" if drift > 0 else "fell", []).append((run, exp(min(abs(drift), LARGEST_LOG_RATIO))))
    found = []
    for direction, own in moved.items():
        factors = " to ".join(_ends([times_text(ratio) for ratio in sorted(ratio for _, ratio in own)]))
        found.append(
            Reading(
                "note",
                f"{_names([run for run, _ in own])}: from the first fifth of the training to the last the norms "
                f"{direction} by a factor of {factors}: no constant threshold stays right, but one that follows does",
            )
        )
    return found


def _names(runs: Sequence[Series]) -> str:
    return ", ".join(run.label for run in runs)


def _left(runs: Sequence[Series]) -> str:
    known = [run.mean_coefficient for run in runs if np.isfinite(run.mean_coefficient)]
    return f", with a mean coefficient of {_range(known)}" if known else ""


def _range(rates: Sequence[float]) -> str:
    return " to ".join(_ends([f"{rate:.0%}" for rate in sorted(rates)]))


def _ends(texts: Sequence[str]) -> list[str]:
    """First and last, or one if they are the same."""
    return list(dict.fromkeys([texts[0], texts[-1]]))
