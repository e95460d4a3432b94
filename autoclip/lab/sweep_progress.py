"""The progress of a sweep: runs done, time left, and a line for each finished candidate."""

import heapq
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Self

from optuna.trial import TrialState
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autoclip.lab.sweep import Sweep
from autoclip.terminal import console
from autoclip.tuning.racing import Run
from autoclip.tuning.scoring import Score

LEAST_LEFT = 0.1
"""A job that is overdue is assumed to need this share of its expected time in addition."""
LEAST_BUSY = 0.5
"""Workers are assumed to train for at least this share of their time, however slow the first start was."""


class SweepProgress:
    """A bar over the runs with the time left, and a line for each finished candidate, on stderr.

    The total is known from the start; for a race it is an upper bound.

    Args:
        sweep: the sweep to show.
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
        """Show what has finished since the last call."""
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
        now = time.time()
        ended = self._sweep.runs.done().values()
        under_way = self._sweep.runs.trials([TrialState.RUNNING]).values()
        ages = [now - one.datetime_start.timestamp() for one in under_way if one.datetime_start]
        workers = max(self._workers, len(ages))
        spent = sum(one.duration.total_seconds() for one in ended if one.duration)
        steps = sum(one.steps for of_run in scores.values() for one in of_run)
        if not steps:
            return ""
        # Runs that diverged were short: the missing ones count as whole.
        planned = self._sweep.config.steps * len(self._sweep.settings.lr_multipliers)
        begun = [one for one in ended if one.datetime_start and one.datetime_start.timestamp() > self._began]
        busy = sum(ages) + sum(one.duration.total_seconds() for one in begun if one.duration)
        share = max(busy / (workers * (now - self._began)), LEAST_BUSY)
        seconds = seconds_left(spent / steps * planned, ages, missing, workers) / min(share, 1.0)
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
