"""Trainings for the pictures: read from run directories and traces, and smoothed."""

from collections.abc import Sequence
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoclip.errors import UsageError
from autoclip.lab.yaml_source import read_document
from autoclip.pictures.series import Floats, Series
from autoclip.traces import NormTrace
from autoclip.traces.jsonl import OWN_KEYS, first_row

LOGGED = "gradient norm, as logged"
"""Label of the norms in a trace."""
DRAWN = 1000
"""Points of a smoothed line."""


def read_configuration(path: Path) -> dict[str, Any]:
    """Values of a configuration, empty if there is no file; another version or faulty values do no harm.

    Raises:
        UsageError: the file is not YAML, or holds what the reader of configurations refuses, such as aliases.
    """
    if not path.exists():
        return {}
    document = read_document(path)
    if document.values is None:
        raise UsageError(str(document.faults[0]))
    return document.values


def is_metrics(path: Path) -> bool:
    """Return True if a file is a `metrics.jsonl` of ours; an empty one is."""
    return path.is_file() and (not path.stat().st_size or first_row(path)[0].keys() >= OWN_KEYS)


def logged_series(trace: NormTrace) -> Series:
    """The steps of a trace as they were logged, without skipped steps and warm-up, which a trace does not show."""
    nothing = np.zeros(len(trace), dtype=np.bool_)
    thresholds = np.full(len(trace), inf) if trace.thresholds is None else trace.thresholds
    norms = np.where(np.isfinite(trace.norms), trace.norms, np.nan)
    return Series(
        label="log",
        steps=trace.steps,
        norms=norms,
        thresholds=thresholds,
        losses=np.full(len(trace), np.nan) if trace.losses is None else trace.losses,
        coefficients=np.full(len(trace), np.nan),
        clipped=norms > thresholds,
        skipped=nothing,
        warmup=nothing,
    )


def smoothing(count: int) -> tuple[NDArray[np.int64], int]:
    """Positions at which the smoothed loss of `count` steps is drawn, and the number of steps for each."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, DRAWN)).astype(np.int64)), max(1, count // 50)


def smoothed(values: Floats, at: NDArray[np.int64], width: int) -> Floats:
    """Median of the finite ones among `width` values around each position; NaN if there are none.

    Centred, so that it does not lag behind a loss that falls; a single spike leaves no trace in it.

    Args:
        values: (n,).
        at: positions, also beyond the last value.
        width: number of values.
    """
    medians = np.full(len(at), nan)
    for place, centre in enumerate(at.tolist()):
        near = values[max(centre - (width - 1) // 2, 0) : centre + width // 2 + 1]
        near = near[np.isfinite(near)]
        if centre < len(values) and len(near):
            medians[place] = np.median(near)
    return medians


def pooled_norms(runs: Sequence[Series]) -> Floats:
    """The usable norms of several trainings together."""
    return np.concatenate([run.norms[run.usable] for run in runs]) if runs else np.empty(0)
