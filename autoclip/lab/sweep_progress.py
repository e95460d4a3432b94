"""What a person sees while a sweep goes on: runs done, time left, and a line for each finished candidate."""

import heapq
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Self

from optuna.trial import TrialState
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autoclip.lab.sweep import Sweep
from autoclip.terminal import console

LEAST_LEFT = 0.1
"""What a job that already takes longer than the mean is thought to need still, as a share of the mean."""


class SweepProgress:
    """A bar over the runs with the time left, and a line for each finished candidate, on stderr.

    The total is known from the start; of a race it is the most that it may take.

    Args:
        sweep: whose runs.
        workers: processes on this machine.
    """

    def __init__(self, sweep: Sweep, workers: int) -> None:
        self._sweep, self._workers = sweep, workers
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
        self._began = time.time()
        self._bar = self._progress.add_task(sweep.config.name[:24], total=None, left="")
        self.update()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.update(self._bar, left="")
        self._progress.stop()

    def update(self) -> None:
        """Show what has been finished since the last time."""
        sweep, rates = self._sweep, len(self._sweep.settings.lr_multipliers)
        done = sweep.trials.done()
        seeds = len(sweep.settings.seeds)
        refined = seeds * sum(name not in sweep.candidates for name in done)
        total = sweep.most_runs() + seeds * sweep.settings.refine_trials
        completed = len(sweep.runs.done()) + refined
        left = self._left(total - completed) if completed < total else ""
        self._progress.update(self._bar, total=rates * total, completed=rates * completed, left=left)
        for key, trial in done.items():
            if key not in self._shown:
                self._shown.add(key)
                convergence, unsteadiness = trial.values
                self._console.print(
                    f"{trial.user_attrs['name']}: training loss {convergence:.4f}, instability {unsteadiness:.3f}, "
                    f"failed {trial.user_attrs['failed runs at any rate']} of {rates * trial.user_attrs['seeds']}"
                )

    def _left(self, missing: int) -> str:
        now = time.time()
        ended = [one.duration.total_seconds() for one in self._sweep.runs.done().values() if one.duration]
        ages = [
            now - one.datetime_start.timestamp()
            for one in self._sweep.runs.trials([TrialState.RUNNING]).values()
            if one.datetime_start
        ]
        seconds = seconds_left(ended, ages, missing, max(self._workers, len(ages)))
        return "" if seconds is None else f"about {timedelta(seconds=round(seconds))} left"


def seconds_left(ended: Sequence[float], ages: Sequence[float], missing: int, workers: int) -> float | None:
    """How long the missing jobs take, if each takes the mean of the others; None before the first has ended.

    Args:
        ended: seconds that each finished job took.
        ages: seconds since each job under way was begun.
        missing: number of jobs that are not finished, those under way included.
        workers: number of processes, at least that of the jobs under way.
    """
    if not ended:
        return None
    mean = sum(ended) / len(ended)
    free = [max(mean - age, LEAST_LEFT * mean) for age in ages] + [0.0] * (workers - len(ages))
    heapq.heapify(free)
    for _ in range(missing - len(ages)):
        heapq.heapreplace(free, free[0] + mean)
    return max(free)
