"""The scalars of a log while it is read, row by row or one by one; they become traces.

Whatever the format, this decides which columns are the norm, the step and the loss, and what is noted.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from math import inf, nan
from typing import Any

import numpy as np

from autoclip.errors import UsageError
from autoclip.traces.columns import (
    DOWNLOAD,
    Selection,
    counts_other,
    is_epoch,
    listed,
    loss_rank,
    may_be_step,
    part_of,
    program_of_means,
    step_column,
    threshold_of,
)
from autoclip.traces.notes import counted
from autoclip.traces.series import MAX_STEP, Series
from autoclip.traces.trace import Floats, Ints, NormTrace

DEEPEST = 8
"""Levels of nested objects that are read."""
EXAMPLES = 3
"""A note shows values that are not numbers of at most this many columns."""
LONGEST_GROUP = 100
"""Most characters in the name of a nested object that is read: the names of all its values begin with it."""

_OF_ALL = re.compile(r"(?<=\d)\s*/\s*\d+\s*$")


def flattened(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the values of nested objects under dotted names.

    >>> flattened({"step": 1, "train": {"loss": 2.0, "norms": {"total": 3.0}}})
    {'step': 1, 'train.loss': 2.0, 'train.norms.total': 3.0}
    """
    for _ in range(DEEPEST):
        if dict not in map(type, row.values()):
            break
        level: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(value, dict) and len(name) <= LONGEST_GROUP:
                level.update((f"{name}.{inner}", one) for inner, one in value.items())
            else:
                level[name] = value
        row = level
    return row


class ScalarLog:
    """The scalars of one run: the series that are wanted, the names of the others, and notes on the log.

    The first row that has a column decides which column is its step, unless `selection` does; if the row has no known
    one, rows are numbered. Later values without that step are left out, as a second way of counting steps would mix up
    their order.

    Args:
        selection: what is wanted.
        source: the file or directory, for messages.
        form: the format that was recognised, in words.
        columns: of a table, if they are known; those of a download from TensorBoard say what is the norm.

    Attributes:
        notes: sentences on damage, from the reader.
        program: that wrote the log, if the format shows it.
    """

    def __init__(
        self,
        selection: Selection,
        source: str,
        form: str = "",
        columns: Iterable[str] = (),
    ) -> None:
        self.selection, self.source, self.format, self.program = selection, source, form, ""
        self.notes: list[str] = []
        if [*columns] == DOWNLOAD and selection.column is None:
            self.selection = replace(selection, column=DOWNLOAD[-1])
            self.format = "a download of one tag from TensorBoard"
            self.notes = ["the download does not say which tag it is of: make sure that these are gradient norms"]
        self._series: dict[str, Series] = {}
        self._wanted: dict[str, bool] = {}  # all columns seen
        self._axes: dict[str, str | None] = {}  # column -> its steps; None: numbers of rows
        self._epoch: str | None = None
        self._rows = self._without_step = self._strange_steps = 0
        self._no_steps: dict[str, None] = {}  # the first values that are not steps
        self._no_numbers: Counter[str] = Counter()
        self._no_number: dict[str, str] = {}  # by column, its first value that is no number

    def wants(self, name: str) -> bool:
        """Note that there is such a column; True if it may hold norms, or values that belong to them."""
        known = self._wanted.get(name)
        if known is None:
            known = self._wanted[name] = self.selection.wants(name)
            if self._epoch is None and is_epoch(name):
                self._epoch = name
        return known

    def needs(self, name: str) -> bool:
        """Return True if a row must have this column's value; the others may be missing, at no loss."""
        step = self.selection.step_column
        return self.wants(name) or (may_be_step(name) if step is None else name == step) or name == self._epoch

    def add(self, name: str, step: int, value: float, epoch: int | None = None) -> None:
        """Take one value of one column; steps and epochs lie within +-`MAX_STEP`."""
        series = self._series.get(name)
        if series is None:
            if not self.wants(name):
                return
            series = self._series[name] = Series()
        series.steps.append(step)
        series.values.append(value)
        if epoch is not None:
            series.epochs.append(epoch)

    def restart(self, step: int) -> None:
        """Discard the values of all columns for this step and later ones."""
        for series in self._series.values():
            series.restart(step)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Take one row, a value for each column."""
        wanted, axes, add = self._wanted, self._axes, self.add
        if not row.keys() <= wanted.keys():
            for name in row:
                self.wants(name)
        epoch = to_scalar(row.get(self._epoch)) if self._epoch is not None else None
        steps: dict[str | None, int | None] = {None: self._rows}  # by axis
        has_values = False
        for name, value in row.items():
            if not wanted[name]:
                continue
            found = value if type(value) is float else self._number(name, value)
            if found is None:
                continue
            has_values = True
            axis = axes[name] if name in axes else self._axis(name, row)
            if axis is not None and axis not in steps:
                steps[axis] = to_scalar(row.get(axis))
            step = steps[axis]
            if step is not None:
                add(name, step, found, epoch)
                continue
            self._without_step += 1
            if axis is not None and row.get(axis) not in (None, ""):
                self._strange_steps += 1
                if len(self._no_steps) < EXAMPLES:
                    self._no_steps[_shown(row[axis])] = None
        self._rows += has_values

    def add_rows(self, rows: list[dict[str, Any]]) -> None:
        """Take rows with nested objects; column by column, which is quicker, if all are alike and hold numbers."""
        if not self._add_columns(rows):
            for row in rows:
                self.add_row(flattened(row))

    def _add_columns(self, rows: list[dict[str, Any]]) -> bool:
        """Take rows whose columns are known and hold floats, and whole numbers as steps; False: nothing was taken."""
        keys = rows[0].keys()
        axes = {name: self._axes.get(name) for name in keys if self._wanted.get(name)}
        if self._epoch is not None or not axes or not keys <= self._wanted.keys():
            return False
        if any(row.keys() != keys for row in rows):
            return False
        columns: dict[str | None, list[Any]] = {name: [row[name] for row in rows] for name in keys}
        kinds = {name: {*map(type, column)} for name, column in columns.items()}
        if any(kinds[name] != {float} if name in axes else dict in kinds[name] for name in keys):
            return False
        if any(kinds.get(name) != {int} or max(map(abs, columns[name])) > MAX_STEP for name in {*axes.values()}):
            return False
        for name, axis in axes.items():
            series = self._series.setdefault(name, Series())
            series.steps.extend(columns[axis])
            series.values.extend(columns[name])
        self._rows += len(rows)
        return True

    def _number(self, name: str, value: Any) -> float | None:
        if value is None or value == "":
            return None
        found = number(value)
        if found is None:
            self._no_numbers[name] += 1
            self._no_number.setdefault(name, _shown(value))
        return found

    def _axis(self, name: str, row: Mapping[str, Any]) -> str | None:
        filled = (other for other, value in row.items() if value is not None and value != "")
        step = self.selection.step_column
        axis = self._axes[name] = step if step is not None else step_column(filled, name)
        return axis

    def traces(self) -> list[NormTrace]:
        """The traces of the norms, one for each training, in the order of writing.

        Steps that restart in each epoch are counted on: epoch times the steps of an epoch, plus the step.

        Raises:
            NoNormError: no column holds norms.
            UsageError: several may, the values cannot be norms, or those of the requested column cannot be steps.
        """
        notes = [*self._notes_on_rows(), *self.notes]
        column = self.selection.choose(self._series, self._wanted, self.source)
        source = f"{self.source} [{column}]"
        notes += self._count_on(column)
        norms = self._series.get(column, Series())
        trainings = {name: series.trainings() for name, series in self._series.items()}
        count = len(trainings.setdefault(column, [norms]))
        if count == 1:
            return [self._trace(column, source, {column: norms} | self._series, notes)]
        turns = counted(count - 1, "time")
        notes.append(f"the steps go back to the start {turns}: the rest is read as another training")
        alike = {name: parts for name, parts in trainings.items() if len(parts) == count}
        return [
            self._trace(
                column,
                f"{source}, training {place + 1} of {count}",
                {name: parts[place] for name, parts in alike.items()},
                notes,
            )
            for place in range(count)
        ]

    def _notes_on_rows(self) -> list[str]:
        # Notes on values that were left out; an error if the steps that were asked for are missing.
        step, notes = self.selection.step_column, []
        if step is not None and step not in self._wanted:
            raise UsageError(f"{self.source} has no column {step!r} for the steps; it has {listed(self._wanted)}")
        if step is not None and self._strange_steps > sum(len(series.steps) for series in self._series.values()):
            raise UsageError(
                f"{self.source}: the column {step!r} does not hold steps, which are whole numbers; among its values "
                f"are {', '.join(self._no_steps)}: choose another one with --step-column"
            )
        if any(axis is None and self.selection.is_norm(name) for name, axis in self._axes.items()):
            notes.append("no column is known to hold the step: rows are numbered (choose one with --step-column)")
        if self._without_step:
            strange = f" (no step: {', '.join(self._no_steps)})" if self._no_steps else ""
            notes.append(f"{counted(self._without_step, 'value')} left out: without a step{strange}")
        if count := self._no_numbers.total():
            examples = [f"{value} in {name!r}" for name, value in islice(self._no_number.items(), EXAMPLES)]
            notes.append(f"{counted(count, 'value')} left out: no number, such as {', '.join(examples)}")
        return notes

    def _count_on(self, column: str) -> list[str]:
        # If steps restart in each epoch, count them on through the epochs, in all columns with the same steps.
        axis = self._axes.get(column)
        own = {name: one for name, one in self._series.items() if self._axes.get(name) == axis and one.has_epochs}
        if column not in own or not own[column].restarts_in_epochs:
            return []
        epochs = [epoch for one in own.values() for epoch in (min(one.epochs), max(one.epochs))]
        steps = [step for one in own.values() for step in (min(one.steps), max(one.steps))]
        # An epoch ends one stride after its last step.
        length = max(steps) - min(steps) + min(one.stride for one in own.values())
        if (max(epochs) - min(epochs) + 1) * length > MAX_STEP:
            return []
        for name, one in own.items():
            one.count_on(min(epochs), length)
            self._axes[name] = f"{axis}, counted on"
        return [f"the steps restart in each epoch: they are counted on, {length} to an epoch"]

    def _trace(self, column: str, source: str, training: Mapping[str, Series], notes: list[str]) -> NormTrace:
        steps, norms, note = training[column].latest()
        notes = [*notes, note] if note else [*notes]
        if not len(steps):
            raise UsageError(f"{source}: no number in it" + (f" ({'; '.join(notes)})" if notes else ""))
        if (norms < 0).any():
            raise UsageError(
                f"{source}: {norms[norms < 0][0]:g} is not a norm; choose another column with --column "
                "(in Python: column=...)"
            )
        if f"{column}_max" in self._wanted:
            notes.append("each value is a mean over several steps: the norms of single steps vary more")
        axis = self._axes.get(column, "step")
        counts = axis is None or not counts_other(axis)
        if not counts:
            notes.append(f"{axis!r} does not count optimizer steps: the number between two norms is not known")
        part = part_of(column)
        losses = sorted(
            (part_of(name) != part, rank, name)
            for name in training
            if (rank := loss_rank(name)) is not None and part_of(name) in ("", part or "actor")
        )
        beside = (self._beside(name, column, training, steps) for *_, name in losses)
        loss = next((found for found in beside if found is not None), None)
        thresholds = self._beside(threshold_of(column), column, training, steps)
        if thresholds is not None and (thresholds <= 0).any():
            thresholds = None
        has_steps = axis is not None and counts and not training[column].numbered
        trace = NormTrace(steps, norms, source, loss, thresholds, tuple(notes), has_steps, self.format)
        program = program_of_means(column, self._wanted, self.program)
        if program is None or trace.stride == 1:  # a mean over one step is exact
            return trace
        return replace(trace, notes=(*notes, f"{program} logs means over several steps: spikes are flattened"))

    def _beside(self, name: str | None, column: str, training: Mapping[str, Series], steps: Ints) -> Floats | None:
        # Another column's values at the steps of the norms, NaN at steps without one; None if it has no values at all.
        if name is None or name == column or name not in training:
            return None
        series, norms = training[name], training[column]
        if series.numbered != norms.numbered or self._axes.get(name) != self._axes.get(column):
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


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"{value!r:.40}"
