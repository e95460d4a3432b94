"""One job of a sweep: a candidate with some seeds, trained in a worker wherever it is, which returns the scores."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from autoclip.lab.config import ExperimentConfig, checked
from autoclip.lab.experiment import Interrupt, make_task, run_quietly
from autoclip.lab.task import Task
from autoclip.lab.yaml_source import read_text
from autoclip.sweeps.candidates import Candidate, candidate_config
from autoclip.sweeps.scoring import Score, base_scores, read_run, score
from autoclip.sweeps.script import run_script

INTERRUPT = Interrupt()
"""Of this worker."""
_BUSY = Lock()
"""Held while this worker trains."""


@dataclass(frozen=True)
class Job:
    """A candidate to be trained with some seeds, each at every learning rate.

    Attributes:
        key: of its trial in the study.
        candidate: the policy.
        seeds: at least one.
        config: the experiment with its sweep section, as YAML.
        output_dir: of the sweep; the runs are below it.
    """

    key: str
    candidate: Candidate
    seeds: Sequence[int]
    config: str
    output_dir: Path


class InterruptedRun(Exception):  # noqa: N818 - nothing went wrong
    """The run has stopped after a step, with a checkpoint."""


def train(job: Job) -> list[Score]:
    """Train a candidate, or read the runs that are already there.

    Raises:
        InterruptedRun: this worker was asked to stop.
        UsageError: a directory holds another run, or the task cannot be made.
        RunError: the task raised, or the disk refused.
    """
    with _BUSY:
        return [one for seed in job.seeds for one in _train_seed(job, seed)]


def begin_worker(stop: "Connection[Any, Any]", gpus: "SimpleQueue[str | None]") -> None:
    """In a process of the pool: leave Ctrl-C to the driver, and end the run when it asks for it, or is no more.

    Args:
        stop: the driver asks by closing the other end, which its death does too.
        gpus: holds one for each process, or None for each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (gpu := gpus.get()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it when it starts, at the first tensor
    driver = parent_process()
    assert driver is not None

    def end_with_driver() -> None:
        with suppress(EOFError, OSError):
            stop.recv()
        INTERRUPT.asked = True
        driver.join()
        with _BUSY:
            os._exit(1)

    Thread(target=end_with_driver, daemon=True).start()


def _train_seed(job: Job, seed: int) -> list[Score]:
    config = _config_of(job.config)
    settings = config.sweep
    assert settings is not None
    scores = []
    for multiplier in settings.lr_multipliers:
        directory = job.output_dir / job.candidate.run_directory(multiplier, seed)
        own = candidate_config(config, settings, job.candidate, multiplier)
        if settings.command:
            run_script(
                own, settings.command, seed=seed, multiplier=multiplier, directory=directory, interrupt=INTERRUPT
            )
        else:
            run_quietly(own, _task_of(job.config), seed, directory, INTERRUPT)
        if INTERRUPT.asked:
            raise InterruptedRun
        scores.append(score(read_run(directory), multiplier, seed))
    base = base_scores(scores)
    return [one if one in base else replace(one, lows=()) for one in scores]


@lru_cache(1)
def _config_of(text: str) -> ExperimentConfig:
    return checked(read_text(text, "the sweep's configuration"), ExperimentConfig)


@lru_cache(1)
def _task_of(text: str) -> Task:
    return make_task(_config_of(text))
