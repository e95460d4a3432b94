"""`autoclip sweep`: worker processes that share a sweep, and the one that watches them."""

import multiprocessing
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Literal

from optuna.exceptions import StorageInternalError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sqlalchemy.exc import SQLAlchemyError

from autoclip.errors import RunError, UsageError
from autoclip.lab.config import ExperimentConfig, load_config, to_yaml
from autoclip.lab.experiment import Interrupt, make_task
from autoclip.lab.forkserver import worker_context
from autoclip.lab.sweep import Sweep
from autoclip.lab.train import choose_device
from autoclip.run_directory import write_atomically
from autoclip.tuning.study import GRACE_SECONDS, without_password

POLL_SECONDS = 0.5
MOST_KILLED = 20
"""So many workers killed by signals end a sweep: something kills them all."""


def run_sweep(
    config: ExperimentConfig,
    output_dir: Path,
    *,
    workers: int,
    storage: str | None,
    output_format: Literal["text", "json"] = "text",
) -> int:
    """Run or continue a sweep and write what it found into the output directory.

    Args:
        config: the experiment, with its sweep section.
        output_dir: for the runs, the database (unless `storage` names one) and the result.
        workers: processes on this machine; the same command on other machines with the same storage joins in.
        storage: URL of the database; None: that of the configuration, or SQLite in the output directory.
        output_format: "text" prints a table, "json" the results.

    Returns:
        The exit code: 0, 1 where every candidate failed, 130 where the sweep was interrupted.

    Raises:
        UsageError: the directory holds another sweep, or the configuration cannot be swept.
        RunError: a worker failed, or the database was lost.
    """
    if config.sweep is None:
        raise UsageError("the configuration has no sweep section: add `sweep: {}` for the default candidates")
    if not config.sweep.command:
        make_task(config)
        choose_device(config.device)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        url = storage or config.sweep.storage or _own_database(output_dir)
        sweep = Sweep(config, output_dir, url)
        write_atomically(output_dir / "sweep.yaml", to_yaml(config))
    except OSError as error:
        raise RunError(f"cannot write the sweep: {error}") from None
    interrupt = Interrupt()
    if config.sweep.race and len(config.sweep.seeds) < 3:
        print("a race of fewer than three seeds ends with the first: it has no budget for more", file=sys.stderr)  # noqa: T201
    try:
        with interrupt.listening():
            _supervise(sweep, url, workers, interrupt)
    except (SQLAlchemyError, StorageInternalError) as error:
        raise RunError(f"the storage {without_password(url)} was lost: {str(error).splitlines()[0]}") from None
    if interrupt.asked:
        print(f"interrupted; the same command continues in {output_dir}", file=sys.stderr)  # noqa: T201
        return 130
    from autoclip.lab.sweep_report import report

    return report(sweep, output_format)


def _own_database(output_dir: Path) -> str:
    path = output_dir.resolve() / "study.db"
    if "?" in str(path):
        raise UsageError(f"{output_dir} holds a question mark, which a database's URL cannot: choose another name")
    return f"sqlite:///{path}"


def _supervise(sweep: Sweep, url: str, workers: int, interrupt: Interrupt) -> None:
    """Start the workers, replace those that are killed, show each finished candidate, until all is done."""
    context = worker_context()

    def start() -> BaseProcess:
        process: BaseProcess = context.Process(target=_work, args=(sweep.output_dir, url))  # type: ignore[attr-defined]
        process.start()
        return process

    sweep.free_lost()
    processes = [] if sweep.is_done() else [start() for _ in range(workers)]
    import autoclip.lab.sweep_report  # noqa: F401  # takes a second, for which the workers need not wait

    killed = 0
    freed = time.monotonic()
    with SweepProgress(sweep) as progress:
        try:
            while processes and not interrupt.asked:
                time.sleep(POLL_SECONDS)
                for process in [one for one in processes if not one.is_alive()]:
                    processes.remove(process)
                    if process.exitcode in (1, 2):
                        kind = RunError if process.exitcode == 1 else UsageError
                        raise kind("a worker failed; its message is above")
                    if process.exitcode != 0:  # killed: its run is given back
                        killed += 1
                        if killed > MOST_KILLED:
                            raise RunError(f"{killed} workers were killed; is there enough memory?")
                        sweep.free_lost()
                        processes.append(start())
                if time.monotonic() - freed > GRACE_SECONDS:
                    sweep.free_lost()
                    freed = time.monotonic()
                progress.update()
        finally:
            for process in processes:
                process.terminate()  # the worker finishes its step and saves a checkpoint
            for process in processes:
                process.join()


class SweepProgress:
    """A bar over the runs with the time left, and a line for each finished candidate, on stderr.

    Args:
        sweep: whose runs.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not sys.stderr.isatty(),
            speed_estimate_period=24 * 3600,  # runs may take hours
        )
        self._shown = set(sweep.trials.done())
        self._bar = self._progress.add_task(sweep.config.name, total=None)

    def __enter__(self) -> "SweepProgress":
        self._progress.start()
        self.update()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self) -> None:
        """Show what has been finished since the last time."""
        sweep = self._sweep
        scores, done = sweep.scores(), sweep.trials.done()
        seeds = len(sweep.settings.seeds)
        refinements = sum(name not in sweep.candidates for name in done)
        total = len(sweep.plan(scores).runs) + seeds * sweep.settings.refine_trials
        self._progress.update(self._bar, total=total, completed=len(scores) + seeds * refinements)
        for key, trial in done.items():
            if key not in self._shown:
                self._shown.add(key)
                convergence, steadiness = trial.values
                self._console.print(
                    f"{trial.user_attrs['name']}: convergence {convergence:.4f}, instability {steadiness:.4f}, "
                    f"failed {trial.user_attrs['failed runs']} of {trial.user_attrs['seeds']}",
                    highlight=False,
                    soft_wrap=True,
                )


def _end_with_parent(interrupt: Interrupt) -> None:
    """Ask for the end once the command is no more, however it ended."""
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
            Sweep(load_config(output_dir / "sweep.yaml"), output_dir, url).work(interrupt)
        except (UsageError, RunError) as error:
            print(error, file=sys.stderr)  # noqa: T201
            sys.exit(2 if isinstance(error, UsageError) else 1)
        except (SQLAlchemyError, StorageInternalError) as error:
            print(f"the storage was lost: {str(error).splitlines()[0]}", file=sys.stderr)  # noqa: T201
            sys.exit(1)
