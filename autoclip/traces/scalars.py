"""The scalars of a log of any format while it is read; they become traces."""

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf, nan
from typing import Any

import numpy as np

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection, counts_other, loss_rank, part_of, program_of_means, threshold_of
from autoclip.traces.notes import counted
from autoclip.traces.trace import Floats, Ints, NormTrace

MAX_STEP = 2**53  # a float cannot hold larger steps exactly, and no optimizer gets there

MOST_TRAININGS = 100
"""Most restarts in a log; steps that restart more often count something else, such as micro-batches."""
FEW = 10
"""So do steps that restart more often than this, with fewer values than this each time."""

_OF_ALL = re.compile(r"(?<=\d)\s*/\s*\d+\s*$")


class Series:
    """Values with their steps and, if known, epochs, in the order of writing: 24 bytes each."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.values = array("d")
        self.epochs = array("q")
        self._voids: list[tuple[int, int]] = []

    def restart(self, step: int) -> None:
        """Discard the values written for this step and later ones."""
        self._voids.append((len(self.steps), step))

    @property
    def numbered(self) -> bool:
        """True if only the order of the values counts: their steps are all the same, or restart too often."""
        steps = np.array(self.steps, dtype=np.int64)
        all_one = len(steps) > 1 and not self._voids and bool((steps == steps[0]).all())
        count = len(self._starts())
        return all_one or count > MOST_TRAININGS or (count > FEW and len(steps) < FEW * count)

    @property
    def has_epochs(self) -> bool:
        """True if every value has its epoch."""
        return len(self.epochs) == len(self.steps) > 0

    @property
    def begins_anew_in_epochs(self) -> bool:
        """True if the steps go back when the epoch rises, which no restart causes."""
        return self.has_epochs and bool(((np.diff(self.steps) < 0) & (np.diff(self.epochs) > 0)).any())

    @property
    def stride(self) -> int:
        """Median distance from a step to the next higher one."""
        rises = np.diff(self.steps)
        rises = rises[rises > 0]
        return int(np.median(rises)) if len(rises) else 1

    def count_on(self, first: int, length: int) -> None:
        """Count the steps through all epochs of `length` steps each, from the epoch `first` on."""
        counted_on = (np.array(self.epochs) - first) * length + np.array(self.steps)
        self.steps = array("q", counted_on.tobytes())

    def trainings(self) -> list["Series"]:
        """Cut the series where another training begins: the steps go back to the training's first one, or below it."""
        starts = self._starts()
        if len(starts) == 1 or self.numbered:
            return [self]
        return [self._part(start, end) for start, end in pairwise([*starts, len(self.steps)])]

    def _starts(self) -> list[int]:
        # A single step that goes back to the start, before the old count goes on, is damage and begins nothing.
        steps = np.array(self.steps, dtype=np.int64)
        starts = [0]
        for place in np.flatnonzero(np.diff(steps) < 0) + 1:
            if steps[place] <= steps[starts[-1]] and (steps[place + 1 : place + 2] <= steps[place - 1]).all():
                starts.append(int(place))
        return starts

    def _part(self, start: int, end: int) -> "Series":
        part = Series()
        part.steps, part.values = self.steps[start:end], self.values[start:end]
        # A restart from the start begins another training and discards nothing of this one.
        voids = [(place - start, step) for place, step in self._voids if start < place <= end]
        part._voids = [(place, step) for place, step in voids if step > part.steps[0]]
        return part

    def latest(self) -> tuple[Ints, Floats, str | None]:
        """The values that count, with strictly ascending steps, and a note if others do not.

        A step that is written again, or goes back, discards all earlier values for this step and later ones: the run
        was continued from a checkpoint. That is TensorBoard's rule. Values with useless steps are numbered.
        """
        steps, values = np.array(self.steps, dtype=np.int64), np.array(self.values, dtype=np.float64)
        if self.numbered:
            turns = len(self._starts()) - 1
            seen = (
                f"the steps go back to the start {counted(turns, 'time')}: the values"
                if turns
                else f"all {counted(len(steps), 'value')} carry step {steps[0]}: they"
            )
            return np.arange(len(steps)), values, f"{seen} are numbered in the order of writing"
        # A value counts if its step is below all later ones, the steps of restarts included.
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
        axes: column -> the kind of its steps (None: numbers of rows); columns with different kinds share no steps.
        program: that wrote the log, if the format shows it.
        format: the format that was recognised, in words.
    """

    def __init__(self, selection: Selection, source: str) -> None:
        self.selection = selection
        self.source = source
        self.notes: list[str] = []
        self.axes: dict[str, str | None] = {}
        self.program = self.format = ""
        self._series: dict[str, Series] = {}
        self._names: set[str] = set()
        self._unwanted: set[str] = set()

    def add(self, name: str, step: int, value: float, epoch: int | None = None) -> None:
        """Take one value of one column; steps and epochs lie within +-`MAX_STEP`."""
        series = self._series.get(name)
        if series is None:
            if name in self._unwanted:
                return
            self.seen(name)
            if not self.selection.wants(name):
                self._unwanted.add(name)
                return
            series = self._series[name] = Series()
        series.steps.append(step)
        series.values.append(value)
        if epoch is not None:
            series.epochs.append(epoch)

    def extend(self, name: str, steps: Sequence[int], values: Sequence[float]) -> None:
        """Take values of one column, as by `add` one by one."""
        self.add(name, steps[0], values[0])
        if (series := self._series.get(name)) is not None:
            series.steps.extend(steps[1:])
            series.values.extend(values[1:])

    @property
    def count(self) -> int:
        """Number of values taken, of all columns."""
        return sum(len(series.steps) for series in self._series.values())

    def seen(self, name: str) -> None:
        """Note that there is such a column, with any content."""
        self._names.add(name)

    def restart(self, step: int) -> None:
        """Discard the values of all columns for this step and later ones."""
        for series in self._series.values():
            series.restart(step)

    def traces(self) -> list[NormTrace]:
        """The traces of the norms, one for each training, in the order of writing.

        Steps that restart in each epoch are counted on: epoch times the steps of an epoch, plus the step.

        Raises:
            NoNormError: no column holds norms.
            UsageError: several may, or the values cannot be norms.
        """
        column = self.selection.choose(self._series, self._names, self.source)
        source = f"{self.source} [{column}]"
        self._count_on(column)
        norms = self._series.get(column, Series())
        trainings = {name: series.trainings() for name, series in self._series.items()}
        count = len(trainings.setdefault(column, [norms]))
        if count == 1:
            return [self._trace(column, source, {column: norms} | self._series)]
        self.notes.append(
            f"the steps go back to the start {counted(count - 1, 'time')}: the rest is read as another training"
        )
        return [
            self._trace(
                column,
                f"{source}, training {place + 1} of {count}",
                {name: parts[place] for name, parts in trainings.items() if len(parts) == count},
            )
            for place in range(count)
        ]

    def _trace(self, column: str, source: str, training: Mapping[str, Series]) -> NormTrace:
        steps, norms, note = training[column].latest()
        notes = [*self.notes, *([note] if note else [])]
        if not len(steps):
            raise UsageError(f"{source}: no number in it" + (f" ({'; '.join(notes)})" if notes else ""))
        if (norms < 0).any():
            raise UsageError(
                f"{source}: {norms[norms < 0][0]:g} is not a norm; choose another column with --column "
                "(in Python: column=...)"
            )
        if f"{column}_max" in self._names:
            notes.append("each value is a mean over several steps: the norms of single steps vary more")
        part = part_of(column)
        ranked = sorted(
            (part_of(name) != part, rank, name)
            for name in training
            if (rank := loss_rank(name)) is not None and part_of(name) in ("", part or "actor")
        )
        losses = [found for *_, name in ranked if (found := self._beside(name, column, training, steps)) is not None]
        thresholds = self._beside(threshold_of(column), column, training, steps)
        if thresholds is not None and (thresholds <= 0).any():
            thresholds = None
        axis = self.axes.get(column, "step")
        has_steps = axis is not None and not counts_other(axis) and not training[column].numbered
        if axis is not None and counts_other(axis):
            notes.append(f"{axis!r} does not count optimizer steps: the number between two norms is not known")
        loss = losses[0] if losses else None
        trace = NormTrace(steps, norms, source, loss, thresholds, tuple(notes), has_steps, self.format)
        program = program_of_means(column, self._names, self.program)
        if program is None or trace.stride == 1:  # a mean over one step is exact
            return trace
        return replace(trace, notes=(*notes, f"{program} logs means over several steps: spikes are flattened"))

    def _count_on(self, column: str) -> None:
        # If steps restart in each epoch, count them on through the epochs, in all columns with the same steps.
        if column not in self._series or not self._series[column].begins_anew_in_epochs:
            return
        axis = self.axes.get(column)
        names = [name for name, one in self._series.items() if self.axes.get(name) == axis and one.has_epochs]
        own = [self._series[name] for name in names]
        first, last = min(min(one.epochs) for one in own), max(max(one.epochs) for one in own)
        # An epoch ends one stride after its last step.
        length = (
            max(max(one.steps) for one in own) - min(min(one.steps) for one in own) + min(one.stride for one in own)
        )
        if (last - first + 1) * length > MAX_STEP:
            return
        for name in names:
            self._series[name].count_on(first, length)
            self.axes[name] = f"{axis}, counted on"
        self.notes.append(f"the steps restart in each epoch: they are counted on, {length} to an epoch")

    def _beside(self, name: str | None, column: str, training: Mapping[str, Series], steps: Ints) -> Floats | None:
        # Another column's values at the steps of the norms, NaN at steps without one; None if it has no values at all.
        if name is None or name == column or name not in training:
            return None
        series, norms = training[name], training[column]
        if series.numbered != norms.numbered or self.axes.get(name) != self.axes.get(column):
            return None
        other_steps, values, _ = series.latest()
        if not len(other_steps) or (series.numbered and len(other_steps) != len(steps)):
            return None
        places = np.minimum(np.searchsorted(other_steps, steps), len(other_steps) - 1)
        same = other_steps[places] == steps
        return np.where(same, values[places], nan) if same.any() else None


def number(value: Any) -> float | None:
    """The value as a number, also from a text; None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value) if not isinstance(value, str) or "_" not in value else None
    except ValueError:
        return None
    except OverflowError:  # an int too large for a float
        return -inf if isinstance(value, int) and value < 0 else inf


def to_scalar(value: Any) -> int | None:
    """The value as a step, also from a text such as "10.0" or "10/438"; None if it is not a step."""
    if type(value) is int and -MAX_STEP <= value <= MAX_STEP:
        return value
    found = number(_OF_ALL.sub("", value, count=1) if isinstance(value, str) else value)
    return int(found) if found is not None and abs(found) <= MAX_STEP and found == int(found) else None
