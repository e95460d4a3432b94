"""One configuration over all its seeds: `autoclip run`."""

import errno
import platform
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Literal

import torch

from autoclip.errors import RunError, UsageError
from autoclip.lab.checkpoint import remove_checkpoints
from autoclip.lab.claimed_directory import claimed, for_seconds
from autoclip.lab.code_version import code_version, warn_of_other_code
from autoclip.lab.config import ExperimentConfig, differences, load_config, policies_of, to_yaml, trained_task
from autoclip.lab.device import choose_device
from autoclip.lab.loading import construct, described, load_object, method_of
from autoclip.lab.log_sinks import make_sinks, only_jsonl
from autoclip.lab.output_directory import ERROR, cannot_begin, refuse_for_run
from autoclip.lab.progress import TrainingProgress
from autoclip.lab.run_summary import gradient_flow, over_seeds, read_summary, summarise, table
from autoclip.lab.task import Task, check_attributes
from autoclip.lab.train import train
from autoclip.policies import Policy
from autoclip.run_directory import CONFIG, SUMMARY, json_text, remove_asides, write_atomically, write_json
from autoclip.terminal import console
from autoclip.version import __version__

MAY_CHANGE = ("name", "steps", "seeds", "checkpoint_every", "log", "sweep")
"""Top-level keys that may change before a resume: they do not alter the steps already taken."""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors that end all seeds: the disk is full, over its quota, read-only or broken."""

PATIENCE_SECONDS = 10.0
"""A run waits this long for another process to leave its directory; children of a killed process keep it a while."""


class Interrupt:
    """Remembers Ctrl-C and SIGTERM, so that a run can stop between two steps; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self, *others: signal.Signals) -> Iterator[None]:
        """Handle these two signals, and others, for the duration of the block; Python allows it in the main thread."""
        numbers = (signal.SIGINT, signal.SIGTERM, *others) if current_thread() is main_thread() else ()
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def run_experiment(
    config: ExperimentConfig, output_dir: Path, *, resume: bool, output_format: Literal["text", "json"] = "text"
) -> int:
    """Train every seed into `output_dir/seed-<n>/` and print the results.

    Args:
        config: the experiment.
        output_dir: created where it is missing.
        resume: continue what is there; finished seeds are left as they are.
        output_format: "text" prints a table, "json" the summary.

    Returns:
        The exit code: 0, 1 if a seed failed or diverged, 130 if the run was interrupted.

    Raises:
        UsageError: the directory holds something else or cannot be written, or the task cannot be made.
        RunError: the disk refused.
    """
    interrupt = Interrupt()
    # What the task prints must not mix with the result.
    with interrupt.listening(), redirect_stdout(sys.stderr):
        total = run_seeds(config, output_dir, resume=resume, interrupt=interrupt)
    if output_format == "json":
        print(json_text(total, indent=2))  # noqa: T201
    else:
        console().print(table(total, output_dir))
    if interrupt.asked:
        console(stderr=True).print(f"interrupted; --resume continues in {output_dir}")
        return 130
    return 1 if total["diverged"] or total["failed"] else 0


def run_seeds(config: ExperimentConfig, output_dir: Path, *, resume: bool, interrupt: Interrupt) -> dict[str, Any]:
    """Train every seed into `output_dir/seed-<n>/` and return the summary over them, also written beside them.

    If the task raises, the seed counts as failed, with the error in the summary; the other seeds are still trained.

    Args:
        config: the experiment.
        output_dir: created where it is missing.
        resume: continue what is there; finished seeds are left as they are.
        interrupt: when it comes, the run ends after the step, with a checkpoint.

    Raises:
        UsageError: the directory holds something else or cannot be written, or the task cannot be made.
        RunError: the disk refused.
    """
    task = make_task(config)
    policies_of(config.clip)  # fails, as the device does, before anything is written
    choose_device(config.device)
    make_sinks(config, 0, output_dir, None, print)
    try:
        _prepare(config, output_dir, resume=resume)
    except OSError as error:
        raise cannot_begin(output_dir, error) from None
    summaries = []
    try:
        for seed in config.seeds:
            if interrupt.asked:
                break
            with TrainingProgress(f"{config.name} seed {seed}", config.steps) as progress:
                directory = output_dir / f"seed-{seed}"
                try:
                    with claimed(directory, for_seconds(PATIENCE_SECONDS)) as mine:
                        if not mine:
                            raise UsageError(
                                f"another process is training into {directory}: wait for it, or choose another "
                                f"--output-dir"
                            )
                        summaries.append(_run_seed(config, task, seed, directory, resume, interrupt, progress))
                except RunError as error:
                    progress.say(str(error))
                    summaries.append({"seed": seed, "status": "failed", "error": str(error)})
        total = over_seeds(config, summaries, output_dir)
        write_json(output_dir / SUMMARY, total)
    except OSError as error:
        raise RunError(f"cannot write the run: {error}; --resume continues with what is there") from None
    return total


def run_quietly(config: ExperimentConfig, task: Task, seed: int, directory: Path, interrupt: Interrupt) -> None:
    """Train or continue one seed in `directory`; show nothing and use no other sinks.

    A finished run keeps no checkpoint: nobody will continue it, and a sweep has hundreds of runs. If another process
    trains into the directory, this one waits for its end. So a run is trained once even if two processes hold it (one
    seemed lost while the machine slept).

    Raises:
        UsageError: the directory holds another run.
        RunError: the task raised, or the disk refused.
    """
    try:
        _begin(config, directory)
        with (
            claimed(directory, lambda: not interrupt.asked) as mine,
            TrainingProgress("", config.steps, bar=False) as progress,
        ):
            if not mine:
                return
            quiet = only_jsonl(config)
            summary = _run_seed(quiet, task, seed, directory, True, interrupt, progress, last_checkpoint=False)
            if summary["status"] != "interrupted":
                remove_checkpoints(directory)
    except OSError as error:
        raise RunError(f"cannot write the run: {error}") from None


def make_task(config: ExperimentConfig) -> Task:
    """Import and construct the configured task.

    Raises:
        UsageError: it cannot be imported, is not a class, lacks a method of the protocol, refuses its arguments, or an
            attribute has another type than the protocol says.
    """
    section = trained_task(config)
    target = section.target
    # Check before the call: a configuration can name anything that is installed, such as os:system.
    cls = load_object(target, Path.cwd())
    if not isinstance(cls, type):
        raise UsageError(f"{target} must be a class, got {type(cls).__name__}")
    missing = [name for name in ("model", "batches", "loss", "evaluate") if not callable(getattr(cls, name, None))]
    if missing:
        raise UsageError(f"{target} has no {', '.join(missing)}; a task has model, batches, loss and evaluate")
    task: Task = construct(target, cls, section.args)
    check_attributes(task)
    return task


def _prepare(config: ExperimentConfig, output_dir: Path, *, resume: bool) -> None:
    """Create the directories; refuse to mix two runs in one."""
    refuse_for_run(output_dir, config.seeds, resume=resume)
    for path in sorted(output_dir.glob(f"seed-*/{CONFIG}")):
        _refuse_changes(path.parent, config)
    for seed in config.seeds:
        _begin(config, output_dir / f"seed-{seed}")


def _begin(config: ExperimentConfig, directory: Path) -> None:
    """Create a run directory with its configuration, or check that it holds this run."""
    text = to_yaml(config)
    if not (directory / CONFIG).exists():
        directory.mkdir(parents=True, exist_ok=True)
    elif (directory / CONFIG).read_text(encoding="utf-8", errors="replace") == text:
        return
    else:
        _refuse_changes(directory, config)
    write_atomically(directory / CONFIG, text)


def _refuse_changes(directory: Path, config: ExperimentConfig) -> None:
    before = load_config(directory / CONFIG)
    keep = {name: getattr(config, name) for name in MAY_CHANGE}
    changed = differences(before.model_copy(update=keep), config)
    if changed:
        raise UsageError(
            f"{directory} was begun with another configuration: {'; '.join(changed)}. Resume with the same one, or "
            f"choose another --output-dir"
        )
    done = read_summary(directory).get("steps", 0)
    if done > config.steps:
        raise UsageError(f"{directory} has {done} steps already, more than the configured steps={config.steps}")


def _run_seed(
    config: ExperimentConfig,
    task: Task,
    seed: int,
    directory: Path,
    resume: bool,
    interrupt: Interrupt,
    progress: TrainingProgress,
    last_checkpoint: bool = True,
) -> dict[str, Any]:
    before = read_summary(directory) if resume else {}
    if before and (
        before["status"] == "diverged" or (before["status"] == "finished" and before["steps"] == config.steps)
    ):
        code = code_version(type(task), *map(type, policies_of(config.clip)))
        warn_of_other_code(before.get("code", {}), code, directory, progress.say)
        return before
    remove_asides(directory)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: progress.say(f"warning: {message}")
        try:
            status, training = train(
                config,
                task,
                seed,
                directory,
                resume=resume,
                on_step=progress.update,
                should_stop=lambda: interrupt.asked,
                say=progress.say,
                last_checkpoint=last_checkpoint,
            )
            versions = {"autoclip": __version__, "torch": torch.__version__, "python": platform.python_version()}
            flow = gradient_flow(directory)
            found = {"gradient_flow": flow and flow.verdict}
            summary = summarise(status, training) | found | {"versions": versions, "code": training.code}
            write_json(directory / SUMMARY, summary)
        except UsageError:
            raise
        except RunError as error:
            raise RunError(f"seed {seed} stopped: {error}") from error
        except (Exception, SystemExit) as error:  # the task's code may raise anything
            if isinstance(error, OSError) and error.errno in DISK:
                raise
            kept = _keep_traceback(directory / ERROR)
            raise RunError(f"seed {seed} stopped: {_origin(config, task, error)}: {described(error)}{kept}") from error
    (directory / ERROR).unlink(missing_ok=True)
    return summary


def _origin(config: ExperimentConfig, task: Task, error: BaseException) -> str:
    """The user's class and method that raised an error; the task if neither is known."""
    if method := method_of(lambda one: isinstance(one, Policy), error):
        return f"clip.policy {config.clip.policy.kind} in {method}()"
    method = method_of(lambda one: one is task, error)
    return f"{trained_task(config).target}{f' in {method}()' if method else ''}"


def _keep_traceback(path: Path) -> str:
    try:
        write_atomically(path, traceback.format_exc())
    except OSError:
        return ""  # the disk is what failed
    return f"; traceback in {path}"
