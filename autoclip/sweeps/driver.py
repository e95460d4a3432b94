"""`autoclip sweep`: one process owns the study, decides what is trained next, and keeps the scores."""

import sys
import time
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from autoclip.errors import RunError, UsageError
from autoclip.lab.claimed_directory import claimed
from autoclip.lab.config import ExperimentConfig, to_yaml
from autoclip.lab.device import choose_device
from autoclip.lab.experiment import Interrupt, make_task
from autoclip.lab.output_directory import DATABASE, SWEEP, cannot_begin, refuse_for_sweep
from autoclip.run_directory import write_atomically
from autoclip.sweeps.engine import Engine, results
from autoclip.sweeps.job import Job, train
from autoclip.sweeps.progress import sweep_progress
from autoclip.sweeps.study import GoneError, look_for, without_password
from autoclip.sweeps.sweep import Sweep

P = ParamSpec("P")
R = TypeVar("R")
PATIENCE_SECONDS = 60.0
"""A sweep waits this long for its database."""
CONTINUES = "the same command continues once it is back"
DATABASE_ERRORS = (SQLAlchemyError, StorageInternalError, GoneError)


def run_sweep(
    config: ExperimentConfig,
    output_dir: Path,
    *,
    engine: Callable[[], Engine],
    storage: str | None,
    load_report: Callable[[], Callable[[Sweep], int]],
) -> int:
    """Run or continue a sweep and write its result into the output directory.

    Args:
        config: the experiment, with its sweep section.
        output_dir: for the runs, the database (unless `storage` names one) and the result.
        engine: makes what trains the runs.
        storage: URL of the database; None: that of the configuration, or SQLite in the output directory.
        load_report: imports and returns a function that writes and prints the result, and returns the exit code.

    Returns:
        The exit code: 0, 1 if every candidate failed, 130 if the sweep was interrupted.

    Raises:
        UsageError: the directory holds something else, cannot be written or is in use, or the configuration cannot be
            swept.
        RunError: a run failed, the workers were lost again and again, or the database does not answer.
    """
    if config.sweep is None:
        raise UsageError("the configuration has no sweep section: add `sweep: {}` for the default candidates")
    if not config.sweep.command:
        make_task(config)
        choose_device(config.device)
    url = storage or config.sweep.storage
    if url is None:
        url = f"sqlite:///{output_dir.resolve() / DATABASE}"
        if "?" in url:
            raise UsageError(f"{output_dir} holds a question mark, which a database's URL cannot: choose another name")
    try:
        refuse_for_sweep(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_begin(output_dir, error) from None
    with claimed(output_dir, lambda: False) as mine:
        if not mine:
            raise UsageError(f"another command sweeps in {output_dir}: wait for it, or choose another --output-dir")
        try:
            sweep = Sweep(config, output_dir, url)
            write_atomically(output_dir / SWEEP, to_yaml(config))
        except OSError as error:
            raise cannot_begin(output_dir, error) from None
        except DATABASE_ERRORS as error:
            raise RunError(_silent(url, error)) from None
        interrupt = Interrupt()
        try:
            with interrupt.listening():
                _drive(sweep, engine, interrupt, load_report)
            if interrupt.asked:
                print(f"interrupted; the same command continues in {output_dir}", file=sys.stderr)  # noqa: T201
                return 130
            return load_report()(sweep)
        except DATABASE_ERRORS as error:
            raise RunError(f"{_silent(url, error)}: {CONTINUES}") from None
        except BrokenPipeError:
            raise  # nobody reads what is printed
        except OSError as error:
            raise RunError(f"cannot write the sweep: {error}") from None


def _drive(sweep: Sweep, engine: Callable[[], Engine], interrupt: Interrupt, load_report: Callable[[], object]) -> None:
    """Train what is left of a sweep and keep the scores, until the interrupt."""
    sweep.settle()  # what an earlier command did not come to
    if sweep.is_done():
        return

    def next_job(under_way: Collection[str]) -> Job | None:
        return None if interrupt.asked else _answer(sweep.url, interrupt, sweep.next_job, under_way)

    with closing(engine()) as workers, sweep_progress(sweep) as update:
        for ended in results(workers, train, next_job):
            if interrupt.asked:
                return
            if ended is not None:
                _answer(sweep.url, interrupt, sweep.finish, *ended)
                _answer(sweep.url, interrupt, update)
            load_report()  # takes a second, for which the workers need not wait


def _answer(url: str, interrupt: Interrupt, function: Callable[P, R], *args: P.args, **named: P.kwargs) -> R | None:
    """Call a function that needs the database. One that is locked, moved, or whose server starts again is waited for.

    Returns:
        What the function returns; None after an interrupt.

    Raises:
        RunError: the database has been away for a minute.
    """
    until: float | None = None
    while True:
        try:
            look_for(url)
            return function(*args, **named)
        except DATABASE_ERRORS as error:
            silent = _silent(url, error)
        if until is None:
            until = time.monotonic() + PATIENCE_SECONDS
            print(f"{silent}: waiting up to {PATIENCE_SECONDS:.0f} s for it", file=sys.stderr)  # noqa: T201
        if time.monotonic() > until:
            raise RunError(f"{silent}: {CONTINUES}")
        if interrupt.asked:
            return None
        time.sleep(0.5)


def _silent(url: str, error: Exception) -> str:
    return f"the storage {without_password(url)} does not answer ({str(error).splitlines()[0]})"
