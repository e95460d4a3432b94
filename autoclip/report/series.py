"""The steps of one training, as arrays: what a run directory or a trace comes down to for the pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoclip.records import clip_rate, mean_coefficient
from autoclip.run_directory import METRICS
from autoclip.traces.jsonl import OWN_KEYS
from autoclip.tuning.replay import ROLLING_STEPS

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

DRAWN = 1000
"""Points of a smoothed line."""
FEWEST_STEPS = 20
"""Active steps below which there is no rate to speak of."""


@dataclass(frozen=True)
class Series:
    """One training, step by step; all arrays have one value for each step that was recorded.

    Attributes:
        label: what legends call it.
        steps: ascending.
        norms: before clipping; NaN: not finite.
        thresholds: in force; inf: none; NaN: unknown.
        losses: NaN: not finite, or not given.
        coefficients: norm after clipping over norm before; NaN: unknown.
        clipped: whether the norm lay above the threshold.
        skipped: whether the step was made to have no effect.
        warmup: whether the policy was still collecting norms.
    """

    label: str
    steps: NDArray[np.int64]
    norms: Floats
    thresholds: Floats
    losses: Floats
    coefficients: Floats
    clipped: Flags
    skipped: Flags
    warmup: Flags

    @property
    def usable(self) -> Flags:
        """Which norms are finite and above zero: those that a policy learns from."""
        return np.isfinite(self.norms) & (self.norms > 0)

    @property
    def active(self) -> Flags:
        """Which steps count in a clip rate."""
        return ~self.warmup & self.usable

    @property
    def clip_rate(self) -> float:
        """Share of the active steps that were clipped; NaN without one."""
        return clip_rate(int(self.clipped[self.active].sum()), int(self.active.sum()))

    @property
    def mean_coefficient(self) -> float:
        """Mean coefficient of the active steps; NaN without one, or where one of them is unknown."""
        return mean_coefficient(float(self.coefficients[self.active].sum()), int(self.active.sum()))

    def rolling_clip_rate(self) -> tuple[NDArray[np.int64], Floats, int]:
        """Last step of each window, clip rate over its active steps, and their number; empty for a short training."""
        active = self.active
        clipped = self.clipped[active].astype(np.float64)
        window = min(ROLLING_STEPS, max(FEWEST_STEPS, len(clipped) // 5))
        if len(clipped) < window:
            return np.empty(0, np.int64), np.empty(0), window
        sums = np.concatenate([[0.0], clipped.cumsum()])
        return self.steps[active][window - 1 :], (sums[window:] - sums[:-window]) / window, window

    def __len__(self) -> int:
        return len(self.steps)


def is_metrics(path: Path) -> bool:
    """Whether a file is a `metrics.jsonl` of ours; one without a line is."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    try:
        return not first or json.loads(first).keys() >= OWN_KEYS
    except (ValueError, AttributeError, RecursionError):
        return False


def read_series(directory: Path, label: str) -> Series:
    """Read the metrics of a run directory, as far as they are whole.

    Raises:
        OSError: the file cannot be read.
    """
    lines: list[dict[str, Any]] = []
    for text in (directory / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if not isinstance(line["step"], int):
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break  # torn by a kill
        lines.append(line)
    thresholds = _numbers(lines, "threshold")
    return Series(
        label=label,
        steps=np.array([line["step"] for line in lines], dtype=np.int64),
        norms=_numbers(lines, "total_norm"),
        thresholds=np.where(np.isnan(thresholds), inf, thresholds),
        losses=_numbers(lines, "loss"),
        coefficients=_numbers(lines, "coefficient"),
        clipped=np.array([line.get("clipped") is True for line in lines], dtype=np.bool_),
        skipped=np.array([line.get("skipped") is True for line in lines], dtype=np.bool_),
        warmup=np.array([line.get("phase") == "warmup" for line in lines], dtype=np.bool_),
    )


def smoothing(count: int) -> tuple[NDArray[np.int64], int]:
    """For a training of so many steps: the positions at which its smoothed loss is drawn, and over how many steps."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, DRAWN)).astype(np.int64)), max(1, count // 50)


def smoothed(values: Floats, at: NDArray[np.int64], width: int) -> Floats:
    """Median of the finite ones of so many values around each position; NaN where there are none.

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


def _numbers(lines: Sequence[dict[str, Any]], name: str) -> Floats:
    values = [line.get(name) for line in lines]
    numbers = [float(one) if isinstance(one, int | float) and not isinstance(one, bool) else nan for one in values]
    return np.array(numbers, dtype=np.float64)
