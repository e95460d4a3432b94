"""Where the jobs of a sweep run: processes on this machine, a Dask scheduler, or any executor."""

from abc import ABC, abstractmethod
from concurrent.futures import Executor, Future, ProcessPoolExecutor

from autoclip.errors import RunError, UsageError
from autoclip.lab.forkserver import worker_context
from autoclip.lab.sweep_job import Job, begin_worker, train
from autoclip.tuning.scoring import Score


class Engine(ABC):
    """Takes jobs and trains them.

    Attributes:
        at_once: number of jobs that are worth submitting at the same time.
    """

    at_once: int

    @abstractmethod
    def submit(self, job: Job) -> "Future[list[Score]]":
        """Train a job on a free worker."""

    @abstractmethod
    def renew(self) -> None:
        """Replace the workers after one was lost, which ends the jobs of all of them."""

    @abstractmethod
    def close(self) -> None:
        """Ask the workers to stop, and wait until they have."""


class ProcessPool(Engine):
    """Worker processes on this machine.

    Args:
        workers: number of processes.
    """

    def __init__(self, workers: int) -> None:
        self.at_once = workers
        self._context = worker_context()
        self._begin()

    def _begin(self) -> None:
        self._stop = self._context.Event()
        self._pool = ProcessPoolExecutor(
            self.at_once, mp_context=self._context, initializer=begin_worker, initargs=(self._stop,)
        )

    def submit(self, job: Job) -> "Future[list[Score]]":
        """Train a job in a free process."""
        return self._pool.submit(train, job)

    def renew(self) -> None:
        """Begin again with new processes; the pool has ended those that were left."""
        self._pool.shutdown(cancel_futures=True)
        self._begin()

    def close(self) -> None:
        """Let each process finish its step and save a checkpoint."""
        self._stop.set()
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

    def submit(self, job: Job) -> "Future[list[Score]]":
        """Hand a job over."""
        return self._executor.submit(train, job)

    def renew(self) -> None:
        """Raise a RunError: it cannot be replaced from here."""
        raise RunError("the executor has lost its workers; the same command continues once there are new ones")

    def close(self) -> None:
        """Leave it to whoever made it."""


def dask_scheduler(address: str) -> GivenExecutor:
    """The workers of a Dask scheduler, wherever they are.

    Args:
        address: as in tcp://host:8786.

    Raises:
        UsageError: Dask is missing, or no scheduler answers.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise UsageError("--engine tcp://... needs Dask: pip install 'autoclip-tuner[dask]'") from None
    try:
        client = Client(address, timeout=10)
    except OSError as error:
        raise UsageError(f"no Dask scheduler answers at {address}: {error}") from None
    threads = sum(client.nthreads().values())
    if not threads:
        raise UsageError(f"the Dask scheduler at {address} has no workers: start some with `dask worker {address}`")
    return GivenExecutor(client.get_executor(pure=False, retries=3), threads)
