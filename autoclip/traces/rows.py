"""Logs of rows: the common part of CSV, JSON lines, Hugging Face's `log_history` and W&B's history."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection, is_epoch, listed, may_be_step, step_column
from autoclip.traces.notes import counted
from autoclip.traces.scalars import MAX_STEP, ScalarLog, number, to_scalar

DEEPEST = 8
"""Levels of nested objects that are read."""
EXAMPLES = 3
"""A note shows values that are not numbers of at most this many columns."""
LONGEST_GROUP = 100
"""Most characters in the name of a nested object that is read: the names of all its values begin with it."""


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


class RowLog:
    """Takes the rows of one run, each a mapping from column to value, and gives its scalars.

    The first row that has a column decides which column is its step, unless `selection` does; if the row has no known
    one, rows are numbered. Later values without that step are left out, as a second way of counting steps would mix up
    their order. Steps that restart in each epoch are counted on (`ScalarLog.traces`).

    Args:
        selection: what is wanted.
        source: the file, for messages.
    """

    def __init__(self, selection: Selection, source: str) -> None:
        self._log = ScalarLog(selection, source)
        self._selection = selection
        self._wanted: dict[str, bool] = {}
        self._needed: dict[str, bool] = {}
        self._epoch: str | None = None
        self._rows = 0
        self._without_step = 0
        self._strange = 0
        self._no_steps: list[str] = []  # the first values that are not steps
        self._no_numbers = 0
        self._no_number: dict[str, str] = {}  # by column, its first value that is no number

    def wants(self, name: str) -> bool:
        """Return True if this column may hold norms, or values that belong to them."""
        known = self._wanted.get(name)
        if known is None:
            known = self._wanted[name] = self._selection.wants(name)
            self._log.seen(name)
            if self._epoch is None and is_epoch(name):
                self._epoch = name
        return known

    def needs(self, name: str) -> bool:
        """Return True if a row must have this column's value; the others may be missing, at no loss."""
        known = self._needed.get(name)
        if known is None:
            step = self._selection.step_column
            is_step = name == step if step is not None else may_be_step(name)
            known = self._needed[name] = self.wants(name) or is_step or name == self._epoch
        return known

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row."""
        wanted, axes, add, values = self._wanted, self._log.axes, self._log.add, {}
        for name, value in row.items():
            if wanted[name] if name in wanted else self.wants(name):
                found = value if type(value) is float else self._number(name, value)
                if found is not None:
                    values[name] = found
        epoch = to_scalar(row.get(self._epoch)) if self._epoch is not None else None
        steps: dict[str | None, int | None] = {None: self._rows}  # by axis
        for name, found in values.items():
            axis = axes[name] if name in axes else self._axis(name, row)
            if axis is not None and axis not in steps:
                steps[axis] = to_scalar(row.get(axis))
            step = steps[axis]
            if step is None:
                self._without_step += 1
                if axis is not None and row.get(axis) not in (None, ""):
                    self._strange += 1
                    self._no_steps = list(dict.fromkeys([*self._no_steps, _shown(row[axis])]))[:EXAMPLES]
            else:
                add(name, step, found, epoch)
        self._rows += bool(values)

    def add_all(self, rows: list[dict[str, Any]]) -> None:
        """Take rows with nested objects; column by column, which is quicker, if all are alike and hold numbers."""
        if self._add_columns(rows):
            return
        for row in rows:
            self.add(flattened(row))

    def _add_columns(self, rows: list[dict[str, Any]]) -> bool:
        """Take rows whose columns are known and hold floats, and whole numbers as steps; False: nothing was taken."""
        keys = rows[0].keys()
        names = [name for name in keys if self._wanted.get(name)]
        axes = {name: axis for name in names if (axis := self._log.axes.get(name)) is not None}
        is_known = self._epoch is None and 0 < len(names) == len(axes) and keys <= self._wanted.keys()
        if not is_known or not all(row.keys() == keys for row in rows):
            return False
        columns = {name: [row[name] for row in rows] for name in keys}
        kinds = {name: {*map(type, column)} for name, column in columns.items()}
        steps = {*axes.values()} & kinds.keys()
        if any(dict in found for found in kinds.values()) or any(kinds[name] != {float} for name in names):
            return False
        if steps != {*axes.values()} or any(kinds[name] != {int} for name in steps):
            return False
        if any(max(map(abs, columns[name])) > MAX_STEP for name in steps):
            return False
        for name, axis in axes.items():
            self._log.extend(name, columns[axis], columns[name])
        self._rows += len(rows)
        return True

    def _number(self, name: str, value: Any) -> float | None:
        if value is None or value == "":
            return None
        found = number(value)
        if found is None:
            self._no_numbers += 1
            self._no_number.setdefault(name, _shown(value))
        return found

    def _axis(self, name: str, row: Mapping[str, Any]) -> str | None:
        filled = (other for other, value in row.items() if value is not None and value != "")
        step = self._selection.step_column
        axis = self._log.axes[name] = step if step is not None else step_column(filled, name)
        return axis

    def finished(self) -> ScalarLog:
        """The scalars, with notes on values that were left out.

        Raises:
            UsageError: the requested column of the steps is missing, or holds something else.
        """
        log, step = self._log, self._selection.step_column
        if step is not None and step not in self._wanted:
            raise UsageError(f"{log.source} has no column {step!r} for the steps; it has {listed(self._wanted)}")
        if step is not None and self._strange > log.count:
            raise UsageError(
                f"{log.source}: the column {step!r} does not hold steps, which are whole numbers; among its values are "
                f"{', '.join(self._no_steps)}: choose another one with --step-column"
            )
        if any(axis is None and self._selection.is_norm(name) for name, axis in log.axes.items()):
            log.notes.append("no column is known to hold the step: rows are numbered (choose one with --step-column)")
        if self._without_step:
            strange = f" (no step: {', '.join(self._no_steps)})" if self._no_steps else ""
            log.notes.append(f"{counted(self._without_step, 'value')} left out: without a step{strange}")
        if self._no_numbers:
            examples = [f"{value} in {name!r}" for name, value in islice(self._no_number.items(), EXAMPLES)]
            log.notes.append(f"{counted(self._no_numbers, 'value')} left out: no number, such as {', '.join(examples)}")
        return log


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"{value!r:.40}"
