"""The scalars of a log while it is read, whatever its format, and what becomes of them: a trace."""

from array import array
from math import inf, nan
from typing import Any

import numpy as np

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection, loss_rank, threshold_of
from autoclip.traces.notes import counted
from autoclip.traces.trace import Floats, Ints, NormTrace

MAX_STEP = 2**53  # beyond it a float is no exact step, and no optimizer gets there


class Series:
    """Values with their steps, in the order in which they were written: 16 bytes each."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.values = array("d")
        self._voids: list[tuple[int, int]] = []

    def append(self, step: int, value: float) -> None:
        """Add one value."""
        self.steps.append(step)
        self.values.append(value)

    def restart(self, step: int) -> None:
        """Declare void what has been written for this step and later ones."""
        self._voids.append((len(self.steps), step))

    @property
    def numbered(self) -> bool:
        """Whether all values carry one step, so that their order is all there is."""
        steps = np.array(self.steps, dtype=np.int64)
        return len(steps) > 1 and not self._voids and bool((steps == steps[0]).all())

    def latest(self) -> tuple[Ints, Floats, str | None]:
        """The values that count, with strictly ascending steps, and a note where others do not.

        A step that is written again, or goes back, voids whatever was written before for this step and later ones: the
        run was continued from a checkpoint. That is TensorBoard's rule. Values that all carry one step are numbered.
        """
        steps, values = np.array(self.steps, dtype=np.int64), np.array(self.values, dtype=np.float64)
        if self.numbered:
            note = (
                f"all {counted(len(steps), 'value')} carry step {steps[0]}: they are numbered in the order of writing"
            )
            return np.arange(len(steps)), values, note
        # A value counts where its step lies below all that come later, the steps of restarts included.
        limits = np.append(steps, 2 * MAX_STEP)
        for place, step in self._voids:
            limits[place] = min(limits[place], step)
        kept = steps < np.minimum.accumulate(limits[::-1])[::-1][1:]
        lost = len(steps) - int(kept.sum())
        if not lost:
            return steps, values, None
        restarts = [step for place, step in self._voids if (steps[:place] >= step).any()]
        turns = int((np.diff(steps) < 0).sum()) + len(restarts)
        if turns:
            note = (
                f"the steps go back {counted(turns, 'time')}, as after a restart: {counted(lost, 'value')} written "
                "before that for the same and later steps left out"
            )
        else:
            note = f"steps occur more than once: the latest value of each is kept, {counted(lost, 'value')} left out"
        return steps[kept], values[kept], note


class ScalarLog:
    """The scalars of one run: the series that are wanted, the names of the others, and notes on the log.

    Args:
        selection: what is wanted.
        source: the file or directory, for messages.

    Attributes:
        axes: by column, what its steps are; columns with different ones have no steps in common.
    """

    def __init__(self, selection: Selection, source: str) -> None:
        self.selection = selection
        self.source = source
        self.notes: list[str] = []
        self.axes: dict[str, str | None] = {}
        self._series: dict[str, Series] = {}
        self._names: set[str] = set()
        self._unwanted: set[str] = set()

    def add(self, name: str, step: int, value: float) -> None:
        """Take one value of one column; steps lie within +-`MAX_STEP`."""
        series = self._series.get(name)
        if series is None:
            if name in self._unwanted:
                return
            self.seen(name)
            if not self.selection.wants(name):
                self._unwanted.add(name)
                return
            series = self._series[name] = Series()
        series.append(step, value)

    def seen(self, name: str) -> None:
        """Note that there is such a column, whatever is in it."""
        self._names.add(name)

    def restart(self, step: int) -> None:
        """Declare void what all columns have for this step and later ones."""
        for series in self._series.values():
            series.restart(step)

    def trace(self) -> NormTrace:
        """The trace of the norms.

        Raises:
            NoNormError: no column holds norms.
            UsageError: several may, or what is there cannot be norms.
        """
        column = self.selection.choose(self._series, self._names, self.source)
        source = f"{self.source} [{column}]"
        steps, norms, note = self._series.get(column, Series()).latest()
        notes = [*self.notes, *([note] if note else [])]
        if not len(steps):
            raise UsageError(f"{source}: no number in it" + (f" ({'; '.join(notes)})" if notes else ""))
        if (norms < 0).any():
            raise UsageError(
                f"{source}: {norms[norms < 0][0]:g} is no norm; choose another column with --column "
                "(in Python: column=...)"
            )
        if f"{column}_max" in self._names:
            notes.append("each value is a mean over several steps: the norms of single steps are spread more widely")
        ranked = sorted((rank, name) for name in self._series if (rank := loss_rank(name)) is not None)
        losses = [found for _, name in ranked if (found := self._beside(name, column, steps)) is not None]
        thresholds = self._beside(threshold_of(column), column, steps)
        if thresholds is not None and (thresholds <= 0).any():
            thresholds = None
        return NormTrace(steps, norms, source, losses[0] if losses else None, thresholds, tuple(notes))

    def _beside(self, name: str | None, column: str, steps: Ints) -> Floats | None:
        # Another column's values at the steps of the norms, NaN where it has none; None where it has none at all.
        if name is None or name == column or name not in self._series:
            return None
        series, norms = self._series[name], self._series[column]
        if series.numbered != norms.numbered or self.axes.get(name) != self.axes.get(column):
            return None
        other_steps, values, _ = series.latest()
        if not len(other_steps) or (series.numbered and len(other_steps) != len(steps)):
            return None
        places = np.minimum(np.searchsorted(other_steps, steps), len(other_steps) - 1)
        same = other_steps[places] == steps
        return np.where(same, values[places], nan) if same.any() else None


def number(value: Any) -> float | None:
    """The value as a number, also where it was written as text; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value) if not isinstance(value, str) or "_" not in value else None
    except ValueError:
        return None
    except OverflowError:  # an int beyond every float
        return -inf if isinstance(value, int) and value < 0 else inf


def whole_number(value: Any) -> int | None:
    """The value as a step, also where it was written as text or with a decimal point; None for what is none."""
    found = number(value)
    return int(found) if found is not None and abs(found) <= MAX_STEP and found == int(found) else None
