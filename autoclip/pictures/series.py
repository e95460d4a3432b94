"""The steps of one training as arrays, for the pictures: from a run directory, a trace or a clipper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoclip.records import ROLLING_STEPS, clip_rate, mean_coefficient
from autoclip.run_directory import METRICS, read_rows

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FEWEST_STEPS = 20
"""With fewer active steps than this, there is no useful rate."""


@dataclass(frozen=True)
class Series:
    """One training, step by step; all arrays have one value for each step that was recorded.

    Attributes:
        label: its name in legends.
        steps: ascending.
        norms: before clipping; NaN: not finite.
        thresholds: in force; inf: none; NaN: unknown.
        losses: NaN: not finite, or not given.
        coefficients: norm after clipping over norm before; NaN: unknown.
        clipped: whether the norm lay above the threshold.
        skipped: whether the step had no effect.
        warmup: whether the policy was still collecting norms.
        updates: norm of what the optimizer changed; NaN: not measured.
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
    updates: Floats = field(default_factory=lambda: np.empty(0))

    @property
    def usable(self) -> Flags:
        """(n,) bool: the norm is finite and above zero, so a policy learns from it."""
        return np.isfinite(self.norms) & (self.norms > 0)

    @property
    def active(self) -> Flags:
        """(n,) bool: the step counts in a clip rate."""
        return ~self.warmup & self.usable

    @property
    def clip_rate(self) -> float:
        """Share of the active steps that were clipped; NaN without one."""
        return clip_rate(int(self.clipped[self.active].sum()), int(self.active.sum()))

    @property
    def mean_coefficient(self) -> float:
        """Mean coefficient of the active steps; NaN without one, or if any is unknown."""
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


def read_series(path: Path, label: str) -> Series:
    """Read the metrics of a run up to the first damaged line.

    Args:
        path: a run directory, or a `metrics.jsonl` under any name.
        label: what legends call the run.

    Raises:
        OSError: the file cannot be read.
    """
    return series_of([*read_rows(path / METRICS if path.is_dir() else path)], label)


def series_of(lines: Sequence[Mapping[str, Any]], label: str) -> Series:
    """The steps in lines of a `metrics.jsonl`.

    Args:
        lines: as `ClipRecord.as_json` has them, by steps; a value that is missing or not a number is unknown.
        label: their name in legends.
    """
    norms, thresholds = _numbers(lines, "total_norm"), _numbers(lines, "threshold")
    return Series(
        label=label,
        steps=np.array([line["step"] for line in lines], dtype=np.int64),
        norms=np.where(np.isfinite(norms), norms, nan),
        thresholds=np.where(np.isnan(thresholds), inf, thresholds),
        losses=_numbers(lines, "loss"),
        coefficients=_numbers(lines, "coefficient"),
        clipped=np.array([line.get("clipped") is True for line in lines], dtype=np.bool_),
        skipped=np.array([line.get("skipped") is True for line in lines], dtype=np.bool_),
        warmup=np.array([line.get("phase") == "warmup" for line in lines], dtype=np.bool_),
        updates=_numbers(lines, "update_norm"),
    )


def _numbers(lines: Sequence[Mapping[str, Any]], name: str) -> Floats:
    values = [line.get(name) for line in lines]
    numbers = [float(one) if isinstance(one, int | float) and not isinstance(one, bool) else nan for one in values]
    return np.array(numbers, dtype=np.float64)
