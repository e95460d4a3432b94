"""`autoclip sweep`: one process owns the study, decides what is trained next, and keeps the scores."""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from contextlib import closing
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from autoclip.errors import RunError, UsageError
from autoclip.lab.claimed_directory import claimed
from autoclip.lab.config import ExperimentConfig, to_yaml
from autoclip.lab.engine import Engine
from autoclip.lab.experiment import Interrupt, make_task
from autoclip.lab.output_directory import DATABASE, SWEEP, cannot_begin, refuse_for_sweep
from autoclip.lab.sweep import Sweep
from autoclip.lab.sweep_job import Job
from autoclip.lab.sweep_progress import SweepProgress
from autoclip.lab.train import choose_device
from autoclip.run_directory import write_atomically
from autoclip.tuning.scoring import Score
from autoclip.tuning.study import GoneError, is_plain_path, look_for, sqlite_file, without_password

POLL_SECONDS = 0.02
MOST_LOST = 20
"""A sweep ends after its workers were lost this often: something kills them."""
PATIENCE_SECONDS = 60.0
"""A sweep waits this long for its database."""
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
    url = without_password(storage or config.sweep.storage or DATABASE)
    try:
        refuse_for_sweep(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_begin(output_dir, error) from None
    with claimed(output_dir, lambda: False) as mine:
        if not mine:
            raise UsageError(f"another command sweeps in {output_dir}: wait for it, or choose another --output-dir")
        try:
            opened = storage or _configured_database(config.sweep.storage, output_dir) or _own_database(output_dir)
            sweep = Sweep(config, output_dir, opened)
            write_atomically(output_dir / SWEEP, to_yaml(config))
        except OSError as error:
            raise cannot_begin(output_dir, error) from None
        except DATABASE_ERRORS as error:
            raise RunError(f"the storage {url} does not answer: {str(error).splitlines()[0]}") from None
        interrupt = Interrupt()
        try:
            with interrupt.listening():
                _drive(sweep, engine, interrupt, load_report)
            if interrupt.asked:
                print(f"interrupted; the same command continues in {output_dir}", file=sys.stderr)  # noqa: T201
                return 130
            return load_report()(sweep)
        except DATABASE_ERRORS as error:
            lost = f"the storage {url} was lost: {str(error).splitlines()[0]}"
            raise RunError(f"{lost}; the same command continues once it is back") from None
        except BrokenPipeError:
            raise  # nobody reads what is printed
        except OSError as error:
            raise RunError(f"cannot write the sweep: {error}") from None


def _drive(sweep: Sweep, engine: Callable[[], Engine], interrupt: Interrupt, load_report: Callable[[], object]) -> None:
    """Submit jobs and keep their scores until nothing is left, or the interrupt."""
    sweep.settle()  # what an earlier command did not come to
    if sweep.is_done():
        return
    running: dict[str, tuple[Job, Future[list[Score]]]] = {}
    began: dict[str, float] = {}
    trained: list[tuple[Job, list[Score]]] = []
    away_since: float | None = None
    lost = 0
    with closing(engine()) as workers, SweepProgress(sweep, workers.at_once, began) as progress:
        while not interrupt.asked:
            ended = [key for key, (_, future) in running.items() if future.done()]
            is_broken = False
            for key in ended:
                job, future = running.pop(key)
                del began[key]
                try:
                    trained.append((job, future.result()))
                except BrokenExecutor:
                    is_broken = True
                except (UsageError, RunError):
                    raise
                except Exception as error:  # of an executor that has lost the worker, or cannot reach it
                    raise RunError(f"{key} failed on its worker: {type(error).__name__}: {error}") from error
            if is_broken:
                lost += 1
                if lost > MOST_LOST:
                    raise RunError(f"workers were killed {lost} times; is there enough memory?")
                running.clear()  # of all of them: what they have trained stays, and is continued
                began.clear()
                workers.renew()
            try:
                look_for(sweep.url)
                while trained:
                    sweep.finish(*trained[0])
                    trained.pop(0)
                if ended or not running:  # else nothing new can be trained
                    while len(running) < workers.at_once and (new := sweep.next_job(running.keys())):
                        running[new.key], began[new.key] = (new, workers.submit(new)), time.monotonic()
                progress.update(changed=bool(ended))
                away_since = None
            except DATABASE_ERRORS as error:
                away_since = _waited(sweep.url, error, away_since)
                continue
            if not running:
                return
            load_report()  # takes a second, for which the workers need not wait
            if not ended:
                time.sleep(POLL_SECONDS)


def _waited(url: str, error: Exception, since: float | None) -> float:
    """Wait a moment for a database that is locked, moved, or whose server starts again; when that began.

    Raises:
        RunError: it has been away for a minute.
    """
    shown, reason = without_password(url), str(error).splitlines()[0]
    if since is None:
        since = time.monotonic()
        waits = f"waiting up to {PATIENCE_SECONDS:.0f} s for it"
        print(f"the storage {shown} does not answer ({reason}): {waits}", file=sys.stderr)  # noqa: T201
    if time.monotonic() - since > PATIENCE_SECONDS:
        raise RunError(f"the storage {shown} was lost: {reason}; the same command continues once it is back")
    time.sleep(0.5)
    return since


def _configured_database(url: str | None, output_dir: Path) -> str | None:
    """The URL that a configuration names; it may not write a file outside the output directory."""
    path = sqlite_file(url) if url else None
    if url is None or path is None:
        return url
    if not is_plain_path(url):
        raise UsageError(
            f"sweep.storage: must be a plain path, as in sqlite:///{output_dir}/study.db, got {url}: options of SQLite "
            f"are for the command line, --storage {url}"
        )
    opened = Path(os.path.abspath(path))  # noqa: PTH100 - as SQLAlchemy has it, a .. goes before links are followed
    if not opened.resolve().is_relative_to(output_dir.resolve()):
        raise UsageError(
            f"sweep.storage: {path} lies outside the output directory {output_dir}, where a configuration may "
            f"not write: name it on the command line, --storage {url}"
        )
    return url


def _own_database(output_dir: Path) -> str:
    path = output_dir.resolve() / DATABASE
    if "?" in str(path):
        raise UsageError(f"{output_dir} holds a question mark, which a database's URL cannot: choose another name")
    return f"sqlite:///{path}"
