"""Where jobs run: processes on this machine, or any executor; and the loop that keeps them busy."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from typing import Any, Protocol, TypeVar

from autoclip.errors import RunError, UsageError
from autoclip.sweeps.forkserver import worker_context
from autoclip.sweeps.job import begin_worker

POLL_SECONDS = 0.05
MOST_LOST = 20
"""The loop ends after the workers were lost this often: something kills them."""


class Keyed(Protocol):
    """A job."""

    @property
    def key(self) -> Any:
        """What tells it apart from all others."""


AnyJob = TypeVar("AnyJob", bound=Keyed)
Result = TypeVar("Result")


class Engine(ABC):
    """Takes jobs and runs them.

    Attributes:
        at_once: number of jobs that are worth submitting at the same time.
    """

    at_once: int

    @abstractmethod
    def submit(self, function: Callable[[AnyJob], Result], job: AnyJob) -> "Future[Result]":
        """Call a function of a module with a job on a free worker."""

    @abstractmethod
    def renew(self) -> None:
        """Replace the workers after one was lost, which ends the jobs of all of them."""

    @abstractmethod
    def close(self) -> None:
        """Ask the workers to stop, and wait until they have."""


def results(
    engine: Engine,
    function: Callable[[AnyJob], Result],
    next_job: Callable[[Collection[Any]], AnyJob | None],
    tell: Callable[[str], object] = lambda _: None,
) -> Iterator[tuple[AnyJob, Result] | None]:
    """Run jobs until there are no more, and yield each with its result as it ends; None where none has.

    Args:
        engine: runs them.
        function: of a module, takes a job.
        next_job: gets the keys under way, and returns a job with another key, or None: nothing new now. It is asked
            again after each job that has ended. A job whose worker was lost has to be returned again.
        tell: told of lost workers.

    Raises:
        RunError: workers were lost again and again, or an executor failed. What the function raises is raised.
    """
    running: dict[Any, tuple[AnyJob, Future[Result]]] = {}
    lost, is_news = 0, True
    while True:
        is_broken = False
        while is_news and len(running) < engine.at_once and (new := next_job(running.keys())) is not None:
            try:
                running[new.key] = new, engine.submit(function, new)
            except BrokenExecutor:
                is_broken = True
                break
        if not running and not is_broken:
            return
        ended = [job for job, future in running.values() if future.done()]
        for job in ended:
            _, future = running.pop(job.key)
            try:
                result = future.result()
            except BrokenExecutor:
                is_broken = True
                continue
            except (UsageError, RunError):
                raise
            except CancelledError:
                raise RunError(
                    f"the executor has cancelled {job.key}, as Dask does when its scheduler is lost; the same command "
                    f"continues once there is one"
                ) from None
            except Exception as error:  # of an executor that has lost the worker, or cannot reach it
                raise RunError(f"{job.key} failed on its worker: {type(error).__name__}: {error}") from error
            yield job, result
        if is_broken:
            lost += 1
            if lost > MOST_LOST:
                raise RunError(f"workers were killed {lost} times; is there enough memory?")
            tell("a worker was killed; its runs start again")
            running.clear()  # of all of them: what they have trained stays, and is continued
            engine.renew()
        is_news = bool(ended) or is_broken
        if not is_news:
            yield None
            wait([future for _, future in running.values()], POLL_SECONDS, FIRST_COMPLETED)


class ProcessPool(Engine):
    """Worker processes on this machine.

    Args:
        workers: number of processes.
        gpus: shared out among them, one for each.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        self.at_once = workers
        self._gpus = gpus
        self._context = worker_context()
        self._begin()

    def _begin(self) -> None:
        # Closing one end asks all that have the other to stop. (An Event would wait for a worker that was killed.)
        asked, self._ask = self._context.Pipe(duplex=False)
        gpus = self._context.SimpleQueue()
        for worker in range(self.at_once):
            gpus.put(self._gpus[worker % len(self._gpus)] if self._gpus else None)
        self._pool = ProcessPoolExecutor(
            self.at_once, mp_context=self._context, initializer=begin_worker, initargs=(asked, gpus)
        )

    def submit(self, function: Callable[[AnyJob], Result], job: AnyJob) -> "Future[Result]":
        """Call the function in a free process."""
        return self._pool.submit(function, job)

    def renew(self) -> None:
        """Begin again with new processes; the pool has ended those that were left."""
        self.close()
        self._begin()

    def close(self) -> None:
        """Let each process finish its step and save a checkpoint."""
        self._ask.close()
        self._pool.shutdown(cancel_futures=True)


class GivenExecutor(Engine):
    """An executor that somebody else has made and will close, and that replaces workers of its own.

    Args:
        executor: whose workers can import autoclip and the task.
        at_once: number of jobs to submit at the same time.
    """

    def __init__(self, executor: Executor, at_once: int) -> None:
        self.at_once = at_once
        self._executor = executor

    def submit(self, function: Callable[[AnyJob], Result], job: AnyJob) -> "Future[Result]":
        """Hand a job over."""
        return self._executor.submit(function, job)

    def renew(self) -> None:
        """Raise a RunError: it cannot be replaced from here."""
        raise RunError("the executor has lost its workers; the same command continues once there are new ones")

    def close(self) -> None:
        """Leave it to whoever made it."""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, in the words of CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]
