"""Results of runs that take seconds: computed one after the other, kept in a CSV, never computed twice."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.studies.documents import read_csv, write_csv, written
from experiments.studies.runner import say_on_stderr
from experiments.studies.study import Job

IDENTITY = ("task", "arm", "lr", "seed", "setting")


def fill(
    path: Path, jobs: Sequence[Job], compute: Callable[[Job], Sequence[Mapping[str, object]]]
) -> list[dict[str, str]]:
    """Rows of all jobs, in their order; those that are missing in the file are computed, and the file is rewritten.

    Args:
        path: of the CSV.
        jobs: what is asked; rows of other jobs are dropped.
        compute: figures of a job, one row or more, without the columns that identify it.
    """
    kept: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in read_csv(path) if path.exists() else []:
        kept.setdefault(tuple(row[name] for name in IDENTITY), []).append(row)
    for number, job in enumerate(jobs):
        if _identity(job) not in kept:
            identity = dict(zip(IDENTITY, _identity(job), strict=True))
            kept[_identity(job)] = [
                {**identity, **{name: written(value) for name, value in figures.items()}} for figures in compute(job)
            ]
            write_csv(path, _in_order(kept, jobs))
            say_on_stderr(f"{path.name}: {number + 1} of {len(jobs)} runs")
    return _in_order(kept, jobs)


def _in_order(kept: Mapping[tuple[str, ...], list[dict[str, str]]], jobs: Sequence[Job]) -> list[dict[str, str]]:
    return [row for job in jobs for row in kept.get(_identity(job), [])]


def _identity(job: Job) -> tuple[str, ...]:
    return tuple(str(part) for part in job.key)
