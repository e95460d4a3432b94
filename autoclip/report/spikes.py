"""The spikes of a run, several seeds or logs: `autoclip spikes DIR`, and a part of the report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from autoclip.errors import UsageError
from autoclip.findings import Finding
from autoclip.pictures.series import Series, read_series
from autoclip.records import ClipRecord
from autoclip.report.series import is_metrics, logged_series
from autoclip.run_directory import METRICS, SPIKES
from autoclip.spikes import SpikeEvent, event_findings, events_of, read_events

TOTALS_ONLY = (
    "only total norms are known here: which parameter or batch it was cannot be told (autoclip.sinks.SpikeRecorder, or "
    "`autoclip run`, records it)"
)


@dataclass(frozen=True)
class Spikes:
    """The spikes of one training.

    Attributes:
        label: its name.
        events: by steps.
        findings: what they have in common.
        note: what cannot be told; empty: nothing.
    """

    label: str
    events: Sequence[SpikeEvent]
    findings: Sequence[Finding]
    note: str = ""

    def __str__(self) -> str:
        lines = [f"{self.label}: {self.findings[0].text}", *(f"  -> {one.text}" for one in self.findings[1:])]
        lines += [f"  {event}" for event in self.events]
        return "\n".join([*lines, *([f"  note: {self.note}"] if self.note and self.events else [])])

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        events = [{"told": str(event), "named": event.named} | asdict(event) for event in self.events]
        return {
            "run": self.label,
            "findings": [one.as_json() for one in self.findings],
            "note": self.note,
            "events": events,
        }


def spikes_of(directory: Path) -> list[Spikes]:
    """The spikes in a directory: of a run, of its seeds, of a `SpikeRecorder`, or in logs.

    Raises:
        UsageError: it holds none of these.
        RunError: an event is damaged.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory: give that of a run, of its spikes, or of logs")
    seeds = sorted(directory.glob(f"seed-*/{METRICS}"), key=lambda path: (len(path.parent.name), path))
    runs = [path.parent for path in seeds if is_metrics(path)] or (
        [directory] if is_metrics(directory / METRICS) else []
    )
    if runs:
        return [of_run(run, read_series(run, run.resolve().name.replace("seed-", "seed "))) for run in runs]
    for folder in (directory, directory / SPIKES):
        if any(folder.glob("step-*.json")):
            events = read_events(folder)
            return [Spikes(directory.resolve().name, events, event_findings(events))]
    from autoclip.traces import read_traces

    return [of_series(logged_series(trace), trace.source) for trace in read_traces([directory], None, None)]


def spike_findings(spikes: Sequence[Spikes]) -> list[Finding]:
    """What the spikes of several runs say, each with its label; one finding where none has any."""
    if not any(one.events for one in spikes):
        return [Finding("good", "no spikes", {"spikes": 0})]
    return [
        Finding(found.level, f"{one.label}: {found.text}", found.figures)
        for one in spikes
        if one.events
        for found in one.findings
    ]


def of_run(directory: Path, series: Series) -> Spikes:
    """The spikes of a run directory; where none were recorded, those that its norms and losses show."""
    if not (directory / SPIKES).is_dir():
        return of_series(series, series.label)
    events = read_events(directory / SPIKES)
    measured = np.isfinite(series.updates)
    updates = (series.steps[measured], series.updates[measured]) if measured.any() else None
    return Spikes(series.label, events, event_findings(events, updates))


def of_series(series: Series, label: str) -> Spikes:
    """The spikes that norms and losses show."""
    events = events_of(_records(series))
    return Spikes(label, events, event_findings(events), TOTALS_ONLY)


def _records(series: Series) -> list[ClipRecord]:
    columns = (series.steps, series.norms, series.thresholds, series.coefficients, series.clipped, series.skipped)
    return [
        ClipRecord(
            step,
            "active",
            norm,
            inf if threshold != threshold else threshold,
            coefficient,
            clipped,
            skipped,
            isfinite(norm),
            None if loss != loss else loss,
        )
        for step, norm, threshold, coefficient, clipped, skipped, loss in zip(
            *(column.tolist() for column in columns), series.losses.tolist(), strict=True
        )
    ]
