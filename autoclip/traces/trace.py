"""The trace: gradient norms of one training, from a log of any format."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoclip.errors import visible

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

EVEN = 0.9
"""Steps are even if at least this share of the distances between them is the same."""


@dataclass(frozen=True, slots=True, eq=False)
class NormTrace:
    """Gradient norms of one training run, by optimizer step.

    The arrays are copied and made read-only. Nothing is subsampled: the trace holds all of the log, with the exceptions
    in `notes`.

    Attributes:
        steps: strictly ascending, int64, shape (n,), n > 0.
        norms: >= 0, float64, shape (n,); NaN or inf if the norm was not finite.
        source: path, and tag or column. Control characters are escaped.
        losses: float64, shape (n,), NaN for a step without one; None if the log has none.
        thresholds: > 0, float64, shape (n,): threshold of each step, inf: not clipped, NaN: not in the log; None if the
            log has none.
        notes: sentences for the user: a torn end, records left out, restarts.
        has_steps: True if `steps` are optimizer steps; if not, they only order the norms, or count something else.
        format: the format that was recognised, in words; empty if no log was read.

    Raises:
        ValueError: an array is not as described.

    >>> trace = NormTrace(steps=[0, 10, 20, 30], norms=[2.0, 1.5, float("nan"), 1.2], source="by hand")
    >>> len(trace), trace.stride, trace.finite_norms
    (4, 10, array([2. , 1.5, 1.2]))
    """

    steps: Ints
    norms: Floats
    source: str
    losses: Floats | None = None
    thresholds: Floats | None = None
    notes: tuple[str, ...] = ()
    has_steps: bool = True
    format: str = ""

    def __post_init__(self) -> None:
        steps = np.array(self.steps)
        if steps.ndim != 1 or not len(steps) or steps.dtype.kind not in "iu":
            raise ValueError(f"steps must be whole numbers, at least one, got {steps.dtype} of shape {steps.shape}")
        if (steps[1:] <= steps[:-1]).any():
            raise ValueError("steps must ascend strictly")
        self._set("steps", steps.astype(np.int64, copy=False))
        for name in ("norms", "losses", "thresholds"):
            if (values := getattr(self, name)) is not None:
                self._set(name, np.array(values, dtype=np.float64))
        if (self.norms < 0).any():
            raise ValueError(f"norms must not be negative, got {self.norms[self.norms < 0][0]}")
        if self.thresholds is not None and (self.thresholds <= 0).any():
            raise ValueError(f"thresholds must be positive, got {self.thresholds[self.thresholds <= 0][0]}")
        object.__setattr__(self, "source", visible(self.source))
        object.__setattr__(self, "notes", tuple(map(visible, self.notes)))

    def _set(self, name: str, array: npt.NDArray[Any]) -> None:
        if array.shape != (len(self.steps),):
            raise ValueError(f"{name} must have shape ({len(self.steps)},), got {array.shape}")
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    @property
    def stride(self) -> int:
        """Optimizer steps from one norm to the next: the median, or the mean if they are uneven.

        It is 1 if unknown, and for a single norm.
        """
        if not self.has_steps or len(self.steps) < 2:
            return 1
        return round(self._distances.mean()) if self.is_uneven else int(np.median(self._distances))

    @property
    def is_uneven(self) -> bool:
        """True if more than a tenth of the distances between steps differ from the median."""
        distances = self._distances
        return len(distances) > 0 and bool((distances == np.median(distances)).mean() < EVEN)

    @property
    def _distances(self) -> Ints:
        return np.diff(self.steps)

    @property
    def frequency(self) -> str:
        """The frequency of logged norms, in words."""
        if not self.has_steps:
            return "optimizer steps not known"
        often = "every step" if self.stride == 1 else f"one step in {self.stride}"
        return f"about {often}" if self.is_uneven else often

    def place(self, step: int) -> str:
        """One of the steps in words; if the log counts something else, a count of that."""
        return f"{'step' if self.has_steps else 'count'} {step}"

    @property
    def finite_norms(self) -> Floats:
        """The norms that are finite, in order."""
        return self.norms[np.isfinite(self.norms)]

    def __len__(self) -> int:
        return len(self.steps)
