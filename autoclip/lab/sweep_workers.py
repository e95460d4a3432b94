"""`autoclip sweep`: worker processes that share a sweep, and the one that watches them."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

from autoclip.errors import RunError, UsageError
from autoclip.lab.claimed_directory import claimed, for_seconds
from autoclip.lab.config import ExperimentConfig, load_config, to_yaml
from autoclip.lab.experiment import Interrupt, make_task
from autoclip.lab.forkserver import worker_context
from autoclip.lab.outage import DATABASE_ERRORS, STORAGE_ERRORS, Outage, look_for
from autoclip.lab.output_directory import DATABASE, SWEEP, cannot_begin, refuse_for_sweep
from autoclip.lab.sweep import Sweep
from autoclip.lab.sweep_progress import SweepProgress
from autoclip.lab.train import choose_device
from autoclip.run_directory import write_atomically
from autoclip.tuning.study import GRACE_SECONDS, is_plain_path, sqlite_file, without_password

POLL_SECONDS = 0.5
MOST_KILLED = 20
"""A sweep ends after this many workers were killed by signals: something kills them all."""
STORAGE_LOST = 3
"""Exit code of a worker that could not reach the database."""
SETUP_SECONDS = 60.0
"""A sweep that begins or ends waits this long for another one in the same directory."""


def run_sweep(
    config: ExperimentConfig,
    output_dir: Path,
    *,
    workers: int,
    storage: str | None,
    load_report: Callable[[], Callable[[Sweep], int]],
) -> int:
    """Run or continue a sweep and write its result into the output directory.

    Args:
        config: the experiment, with its sweep section.
        output_dir: for the runs, the database (unless `storage` names one) and the result.
        workers: processes on this machine; the same command on other machines with the same storage joins in.
        storage: URL of the database; None: that of the configuration, or SQLite in the output directory.
        load_report: imports and returns a function that writes and prints the result, and returns the exit code.

    Returns:
        The exit code: 0, 1 if every candidate failed, 130 if the sweep was interrupted.

    Raises:
        UsageError: the directory holds something else or cannot be written, or the configuration cannot be swept.
        RunError: a worker failed, or the database was lost.
    """
    if config.sweep is None:
        raise UsageError("the configuration has no sweep section: add `sweep: {}` for the default candidates")
    if not config.sweep.command:
        make_task(config)
        choose_device(config.device)
    try:
        refuse_for_sweep(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        url = storage or _configured_database(config.sweep.storage, output_dir) or _own_database(output_dir)
        with claimed(output_dir, for_seconds(SETUP_SECONDS)):  # another may be making the same database
            sweep = Sweep(config, output_dir, url)
            write_atomically(output_dir / SWEEP, to_yaml(config))
    except OSError as error:
        raise cannot_begin(output_dir, error) from None
    except DATABASE_ERRORS as error:
        raise RunError(f"the storage {without_password(url)} does not answer: {str(error).splitlines()[0]}") from None
    interrupt = Interrupt()
    try:
        with interrupt.listening():
            _supervise(sweep, workers, interrupt, load_report)
        if interrupt.asked:
            print(f"interrupted; the same command continues in {output_dir}", file=sys.stderr)  # noqa: T201
            return 130
        with claimed(output_dir, for_seconds(SETUP_SECONDS)):
            return load_report()(sweep)
    except STORAGE_ERRORS as error:
        lost = f"the storage {without_password(url)} was lost: {str(error).splitlines()[0]}"
        raise RunError(f"{lost}; the same command continues once it is back") from None
    except BrokenPipeError:
        raise  # nobody reads what is printed
    except OSError as error:
        raise RunError(f"cannot write the sweep: {error}") from None


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


def _supervise(sweep: Sweep, workers: int, interrupt: Interrupt, load_report: Callable[[], object]) -> None:
    """Start the workers, replace those that are killed, show each finished candidate, until all is done."""
    context = worker_context()

    def start() -> BaseProcess:
        process: BaseProcess = context.Process(target=_work, args=(sweep.output_dir, sweep.url))  # type: ignore[attr-defined]
        process.start()
        return process

    sweep.free_lost()
    progress = SweepProgress(sweep, workers)  # reads what is done before workers run; later reads handle an outage
    processes = [] if sweep.is_done() else [start() for _ in range(workers)]
    load_report()  # takes a second, for which the workers need not wait

    killed = missing = 0
    freed = time.monotonic()
    outage = Outage(sweep.url)
    with progress:
        try:
            while (processes or missing) and not interrupt.asked:
                time.sleep(POLL_SECONDS)
                for process in [one for one in processes if not one.is_alive()]:
                    processes.remove(process)
                    if process.exitcode in (1, 2):
                        kind = RunError if process.exitcode == 1 else UsageError
                        raise kind("a worker failed; its message is above")
                    if process.exitcode == STORAGE_LOST:
                        outage.meet(None)
                    elif process.exitcode != 0:  # killed: its run is given back
                        killed += 1
                        if killed > MOST_KILLED:
                            raise RunError(f"{killed} workers were killed; is there enough memory?")
                    missing += process.exitcode != 0
                try:
                    look_for(sweep.url)
                    if missing or time.monotonic() - freed > GRACE_SECONDS:
                        sweep.free_lost()
                        freed = time.monotonic()
                    progress.update()
                except STORAGE_ERRORS as error:
                    outage.meet(error)
                    sweep.reconnect()
                    continue
                processes += [start() for _ in range(missing)]
                missing = 0
        finally:
            for process in processes:
                process.terminate()  # the worker finishes its step and saves a checkpoint
            for process in processes:
                process.join()


def _end_with_parent(interrupt: Interrupt) -> None:
    """Ask for the end once the command's process has ended, for whatever reason."""
    command = multiprocessing.parent_process()
    if command is not None:
        command.join()
        interrupt.asked = True


def _work(output_dir: Path, url: str) -> None:
    """Body of a worker process."""
    # Ctrl-C in a terminal reaches the workers too; the supervisor passes it on as SIGTERM, and one signal is enough.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt = Interrupt(signal.SIGTERM)
    Thread(target=_end_with_parent, args=(interrupt,), daemon=True).start()
    with interrupt.listening():
        try:
            look_for(url)
            Sweep(load_config(output_dir / SWEEP), output_dir, url).work(interrupt)
        except STORAGE_ERRORS:
            sys.exit(STORAGE_LOST)  # the parent process says so, and waits
        except (UsageError, RunError) as error:
            print(error, file=sys.stderr)  # noqa: T201
            sys.exit(2 if isinstance(error, UsageError) else 1)
