"""Worker processes that train the runs of a study, and the one that writes their rows."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from math import nan
from pathlib import Path
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from autoclip.lab.config import ExperimentConfig, trained_task
from autoclip.lab.experiment import make_task, run_quietly
from autoclip.lab.task import Task
from autoclip.sweeps.engine import ProcessPool, results
from autoclip.sweeps.job import INTERRUPT, InterruptedRun
from autoclip.sweeps.scoring import read_run, score
from autoclip.tuning.replay import SPIKE_STEPS, spikes
from experiments.studies.results import RunRow, RunTable
from experiments.studies.study import Job

RECOVERED_STEPS = 10
"""Losses whose mean tells whether a run is back where it was before a spike."""
SAY_SECONDS = 30.0
UNKNOWN_SECONDS = 10.0
"""Guess for a run of a task of which none is finished."""


def run_jobs(
    jobs: Sequence[Job], table: RunTable, *, workers: int, say: Callable[[str], None], train: Callable[[Job], RunRow]
) -> None:
    """Train what is not in the table yet, in the order of the jobs, and append each row as its run ends.

    Workers that are killed are replaced, and their runs start again.

    Args:
        jobs: the plan.
        table: of finished runs; another command may add to it meanwhile.
        workers: processes.
        say: told how far it is, now and then.
        train: makes the row of a job, in a worker; a function of a module.

    Raises:
        RunError: a run could not be trained, or the workers die again and again.
    """
    progress = Progress(jobs, table, workers, say)

    def next_job(under_way: Collection[tuple[str, str, str, int, str]]) -> Job | None:
        rows = table.rows()
        return next((job for job in jobs if job.key not in rows and job.key not in under_way), None)

    with closing(ProcessPool(workers)) as pool:
        for ended in results(pool, train, next_job, say):
            if ended is not None:
                table.append(ended[1])
                progress.finished(ended[1])
    progress.tell()


def train_job(job: Job) -> RunRow:
    """Train one run in a folder that is removed afterwards, and return its figures.

    Raises:
        RunError: the task raised, or the disk refused.
        UsageError: the task cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="autoclip-study-") as folder:
        config = job.read(Path(folder))
        return row_of(job, trained(config, job.seed, Path(folder)), data_of(config))


def trained(config: ExperimentConfig, seed: int, folder: Path) -> Path:
    """Train one seed into a folder; its run directory."""
    run_quietly(config, _task_of(config), seed, folder / "run", INTERRUPT)
    if INTERRUPT.asked:
        raise InterruptedRun
    return folder / "run"


def data_of(config: ExperimentConfig) -> str:
    """First eight hex digits of the hash of a task's data, empty where it has none."""
    return str(getattr(_task_of(config), "data_hash", None) or "")[:8]


def row_of(job: Job, directory: Path, data: str) -> RunRow:
    """The row of a finished run directory."""
    run = read_run(directory)
    figures = score(run, multiplier=1.0, seed=job.seed)
    return RunRow(
        task=job.task,
        arm=job.arm,
        lr=job.lr,
        seed=job.seed,
        setting=job.setting,
        data=data,
        failed=figures.failed,
        validation_loss=figures.validation_loss,
        initial_loss=figures.initial_loss,
        trivial_loss=figures.trivial_loss,
        aulc=figures.aulc,
        steps=figures.steps,
        clip_rate=nan if figures.clip_rate is None else figures.clip_rate,
        spikes=figures.spikes,
        recovery=recovery(run.losses),
        seconds=run.seconds,
        mean_coefficient=figures.mean_coefficient,
    )


def recovery(losses: Sequence[float]) -> float | None:
    """Median over the spikes of the steps until the losses are back where they were, see `RunRow`."""
    values = np.asarray(losses)
    times = [steps for at in np.flatnonzero(spikes(values)) if (steps := recovery_from(int(at), values)) is not None]
    return float(median(times)) if times else None


def recovery_from(at: int, losses: NDArray[np.float64]) -> int | None:
    """Steps after step `at` until the mean of the next ten losses is back, see `RunRow`.

    Back is at most one standard deviation above the mean of the 128 losses before `at`. One that never is counts all
    steps that were left; None where fewer than ten were. What is not finite is above everything.
    """
    before = losses[at - SPIKE_STEPS : at]
    after = losses[at + 1 :]
    if len(after) < RECOVERED_STEPS:
        return None
    after = np.where(np.isfinite(after), after, np.inf)
    means = np.lib.stride_tricks.sliding_window_view(after, RECOVERED_STEPS).mean(axis=1)
    back = np.flatnonzero(means <= before.mean() + before.std())
    return int(back[0]) if len(back) else len(after)


class Progress:
    """How far a study is, and how long the rest will take by the mean time of each task's finished runs.

    Args:
        jobs: the plan.
        table: of finished runs.
        workers: processes that share the rest.
        say: told.
    """

    def __init__(self, jobs: Sequence[Job], table: RunTable, workers: int, say: Callable[[str], None]) -> None:
        self.jobs, self.table, self.workers, self.say = jobs, table, workers, say
        self._said = time.monotonic()
        self.tell()

    def tell(self) -> None:
        """Say it."""
        rows = self.table.rows()
        left = [job for job in self.jobs if job.key not in rows]
        seconds = seconds_left(left, list(rows.values()))
        self.say(
            f"{len(self.jobs) - len(left)} of {len(self.jobs)} runs; {seconds / 60:.0f} CPU-minutes left, "
            f"about {_duration(seconds / self.workers)} with {self.workers} workers"
        )
        self._said = time.monotonic()

    def finished(self, row: RunRow) -> None:
        """Note a finished run; say so where the last line is half a minute old."""
        if time.monotonic() - self._said > SAY_SECONDS:
            self.tell()


def seconds_left(left: Sequence[Job], finished: Sequence[RunRow]) -> float:
    """Expected time of training: for each task the mean of its finished runs, for one without any that of all."""
    of_task = {
        task: fmean(row.seconds for row in finished if row.task == task) for task in {row.task for row in finished}
    }
    otherwise = fmean(of_task.values()) if of_task else UNKNOWN_SECONDS
    return sum(of_task.get(job.task, otherwise) for job in left)


def _task_of(config: ExperimentConfig) -> Task:
    """The task of a configuration, made once in a process: reading data takes longer than a short run."""
    key = json.dumps(trained_task(config).model_dump(), sort_keys=True)
    if key not in _TASKS:
        _TASKS[key] = make_task(config)
    return _TASKS[key]


_TASKS: dict[str, Task] = {}


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def say_on_stderr(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)
