"""The progress of a sweep: runs done, time left, and a line for each finished candidate."""

import heapq
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autoclip.sweeps.racing import Run
from autoclip.sweeps.scoring import Score
from autoclip.sweeps.sweep import Sweep
from autoclip.terminal import console

LEAST_LEFT = 0.1
"""A job that is overdue is assumed to need this share of its expected time in addition."""
UPDATE_SECONDS = 1.0


class SweepProgress:
    """A bar over the runs with the time left, and a line for each finished candidate, on stderr.

    The total is known from the start; for a race it is an upper bound.

    Args:
        sweep: the sweep to show.
        workers: number of jobs that are trained at once.
        began: key of each job under way -> `time.monotonic()` of its start; the driver keeps it up to date.
    """

    def __init__(self, sweep: Sweep, workers: int, began: Mapping[str, float]) -> None:
        self._sweep, self._workers, self._began = sweep, workers, began
        self._updated = 0.0
        self._console = console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._shown = set(sweep.trials.done())
        self._bar = self._progress.add_task(sweep.config.name[:24], total=None, left="")
        self.update()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.update(self._bar, left="")
        self._progress.stop()

    def update(self, changed: bool = True) -> None:
        """Show what has finished since the last call; once a second the time left, even if nothing has changed."""
        if not changed and time.monotonic() - self._updated < UPDATE_SECONDS:
            return
        self._updated = time.monotonic()
        sweep, rates = self._sweep, len(self._sweep.settings.lr_multipliers)
        done, scores = sweep.trials.done(), sweep.scores()
        seeds = len(sweep.settings.seeds)
        refined = seeds * sum(name not in sweep.candidates for name in done)
        total = sweep.most_runs() + seeds * sweep.settings.refine_trials
        completed = len(scores) + refined
        plan = sweep.plan(scores)
        missing = total - completed if plan.undecided else total - sweep.most_runs() + len(plan.runs) - completed
        left = self._left(scores, missing) if missing > 0 else ""
        self._progress.update(self._bar, total=rates * total, completed=rates * completed, left=left)
        for key, trial in done.items():
            if key not in self._shown:
                self._shown.add(key)
                convergence, unsteadiness = trial.values
                told = trial.user_attrs
                self._console.print(
                    f"{told['candidate']}: training loss {convergence:.4f}, instability {unsteadiness:.3f}, "
                    f"failed {told['failed runs at any rate']} of {rates * told['seeds']}"
                )

    def _left(self, scores: Mapping[Run, Sequence[Score]], missing: int) -> str:
        ended = [one for of_run in scores.values() for one in of_run]
        steps = sum(one.steps for one in ended)
        if not steps:
            return ""
        now = time.monotonic()
        ages = [now - began for began in self._began.values()]
        # Runs that diverged were short: the missing ones count as whole.
        planned = self._sweep.config.steps * len(self._sweep.settings.lr_multipliers)
        each = sum(one.seconds for one in ended) / steps * planned
        seconds = seconds_left(each, ages, missing, max(self._workers, len(ages)))
        return f"about {timedelta(seconds=round(seconds))} left"


def seconds_left(each: float, ages: Sequence[float], missing: int, workers: int) -> float:
    """Seconds until the missing jobs are done; each worker takes one after the other.

    Args:
        each: seconds that a job takes.
        ages: seconds since each job under way was begun.
        missing: number of jobs that are not finished, those under way included.
        workers: number of processes, at least the number of jobs under way.
    """
    free = [max(each - age, LEAST_LEFT * each) for age in ages] + [0.0] * (workers - len(ages))
    heapq.heapify(free)
    for _ in range(missing - len(ages)):
        heapq.heapreplace(free, free[0] + each)
    return max(free)
