"""Values with their steps, and what it means that steps go back: a restart, another training, or no steps at all."""

from array import array
from itertools import pairwise

import numpy as np

from autoclip.traces.notes import counted
from autoclip.traces.trace import Floats, Ints

MAX_STEP = 2**53  # a float cannot hold larger steps exactly, and no optimizer gets there

MOST_TRAININGS = 100
"""Most restarts in a log; steps that restart more often count something else, such as micro-batches."""
FEW = 10
"""So do steps that restart more often than this, with fewer values than this each time."""


class Series:
    """Values with their steps and, if known, epochs, in the order of writing: 24 bytes each."""

    def __init__(self) -> None:
        self.steps, self.values, self.epochs = array("q"), array("d"), array("q")
        self._voids: list[tuple[int, int]] = []

    def restart(self, step: int) -> None:
        """Discard the values written for this step and later ones."""
        self._voids.append((len(self.steps), step))

    @property
    def numbered(self) -> bool:
        """True if only the order of the values counts: their steps are all the same, or restart too often."""
        count = len(self._starts())
        all_one = len(self.steps) > 1 and not self._voids and min(self.steps) == max(self.steps)
        return all_one or count > MOST_TRAININGS or (count > FEW and len(self.steps) < FEW * count)

    @property
    def has_epochs(self) -> bool:
        """True if every value has its epoch."""
        return len(self.epochs) == len(self.steps) > 0

    @property
    def restarts_in_epochs(self) -> bool:
        """True if the steps go back when the epoch rises, which no restart causes."""
        return self.has_epochs and bool(((np.diff(self.steps) < 0) & (np.diff(self.epochs) > 0)).any())

    @property
    def stride(self) -> int:
        """Median distance from a step to the next higher one."""
        rises = np.diff(self.steps)
        return int(np.median(rises[rises > 0])) if (rises > 0).any() else 1

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
        within = ((place - start, step) for place, step in self._voids if start < place <= end)
        part._voids = [(place, step) for place, step in within if step > part.steps[0]]
        return part

    def latest(self) -> tuple[Ints, Floats, str | None]:
        """The values that count, with strictly ascending steps, and a note if others do not.

        A step that is written again, or goes back, discards all earlier values for this step and later ones: the run
        was continued from a checkpoint. That is TensorBoard's rule. Values with useless steps are numbered.
        """
        steps, values = np.array(self.steps, dtype=np.int64), np.array(self.values, dtype=np.float64)
        if self.numbered:
            turns = len(self._starts()) - 1
            seen = f"the steps go back to the start {counted(turns, 'time')}: the values"
            if not turns:
                seen = f"all {counted(len(steps), 'value')} carry step {steps[0]}: they"
            return np.arange(len(steps)), values, f"{seen} are numbered in the order of writing"
        # A value counts if its step is below all later ones, the steps of restarts included.
        limits = np.append(steps, 2 * MAX_STEP)
        for place, step in self._voids:
            limits[place] = min(limits[place], step)
        kept = steps < np.minimum.accumulate(limits[::-1])[::-1][1:]
        lost = counted(len(steps) - int(kept.sum()), "value")
        if kept.all():
            return steps, values, None
        restarts = sum(bool((steps[:place] >= step).any()) for place, step in self._voids)
        turns = int((np.diff(steps) < 0).sum()) + restarts
        note = f"steps occur more than once: the latest value of each is kept, {lost} left out"
        if turns:
            note = (
                f"the steps go back {counted(turns, 'time')}, as after a restart: {lost} written before that for the "
                "same and later steps left out"
            )
        return steps[kept], values[kept], note
