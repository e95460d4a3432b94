"""Engines of several machines: the workers of a Dask scheduler, jobs of Slurm; and which engine a sweep asks for."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from autoclip.errors import RunError, UsageError
from autoclip.lab.config import ExperimentConfig
from autoclip.lab.sweep_section import AnyEngine, DaskEngine, LocalEngine, SlurmEngine
from autoclip.sweeps.engine import AnyJob, Engine, GivenExecutor, ProcessPool, Result, visible_gpus
from autoclip.sweeps.job import INTERRUPT, InterruptedRun

LOOK_SECONDS, QUEUE_SECONDS = 1.0, 10.0
"""Seconds between looks for results, and between questions about Slurm's queue."""
MOST_SUBMITTED = 50
"""A run that has not ended after so many jobs never will."""
SECONDS_TO_END = 60.0
"""Slurm kills a cancelled job half a minute later, unless it is set up otherwise."""


def asked_for(config: ExperimentConfig, engine: str | None, workers: int | None) -> AnyEngine:
    """The engine of the command line, or else of the configuration.

    Args:
        config: the experiment, with its sweep section.
        engine: "slurm", or the address of a Dask scheduler.
        workers: processes on this machine.
    """
    configured = config.sweep.engine if config.sweep else LocalEngine(kind="local")
    if engine == "slurm":
        return configured if isinstance(configured, SlurmEngine) else SlurmEngine(kind="slurm")
    if engine:
        return DaskEngine.model_construct(kind="dask", address=engine)  # what is no address, Dask says
    return LocalEngine(kind="local", workers=workers) if workers else configured


def make_engine(section: AnyEngine, config: ExperimentConfig, output_dir: Path) -> Engine:
    """Construct an engine.

    Raises:
        UsageError: what it needs is missing, or does not answer.
    """
    if isinstance(section, DaskEngine):
        return dask_scheduler(section.address)
    if isinstance(section, SlurmEngine):
        return Slurm(section, output_dir / "slurm", threads=config.threads)
    return ProcessPool(at_once(section, config), _gpus(config))


def at_once(section: AnyEngine, config: ExperimentConfig) -> int:
    """The number of runs that an engine will train at the same time, one where only Dask knows it."""
    if isinstance(section, SlurmEngine):
        return section.at_once
    return 1 if isinstance(section, DaskEngine) else section.workers or len(_gpus(config)) or 1


def _gpus(config: ExperimentConfig) -> list[str]:
    return visible_gpus() if config.device in ("auto", "cuda") else []


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
        raise UsageError("--engine tcp://... needs Dask: pip install 'autoclip-tuner[sweep,plot,dask]'") from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a scheduler that is lost is told in one line
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:  # ValueError: not an address
        raise UsageError(f"no Dask scheduler answers at {address}: {error}") from None
    threads = sum(client.nthreads().values())
    if not threads:
        raise UsageError(f"the Dask scheduler at {address} has no workers: start some with `dask worker {address}`")
    return GivenExecutor(client.get_executor(pure=False, retries=3), threads)


class Slurm(Engine):
    """Jobs of Slurm. One that has ended without a result is submitted again, and its run goes on from its checkpoint.

    So a time limit or a preemption costs the end of a step, a lost node the steps since the checkpoint. Where Slurm
    requeues a job by itself, it is left to do so.

    Args:
        settings: of the jobs.
        folder: for scripts, output and results, on a file system that the nodes share; jobs that an earlier command has
            left for it are cancelled.
        threads: of each job.
        cluster: "slurm", or "local" for the same on this machine.

    Attributes:
        futures: of the jobs without a result.

    Raises:
        UsageError: submitit or Slurm is missing.
    """

    def __init__(self, settings: SlurmEngine, folder: Path, *, threads: int = 1, cluster: str = "slurm") -> None:
        try:
            import submitit
        except ModuleNotFoundError:
            raise UsageError("--engine slurm needs submitit: pip install 'autoclip-tuner[sweep,plot,slurm]'") from None
        try:
            self._executor = submitit.AutoExecutor(folder.resolve(), cluster)
        except RuntimeError:
            raise UsageError("--engine slurm found no srun: start the sweep where jobs are submitted") from None
        self._name = f"autoclip-{sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
        self._executor.update_parameters(
            name=self._name,
            timeout_min=settings.timeout_min,
            cpus_per_task=threads,
            **({"gpus_per_node": settings.gpus_per_node} if settings.gpus_per_node else {}),
            **({"slurm_partition": settings.partition} if settings.partition else {}),
        )
        self.at_once = settings.at_once
        self._is_local = cluster == "local"
        self.futures: list[_SlurmFuture[Any]] = []
        self._next_look = self._next_question = 0.0
        self.close()

    def submit(self, function: Callable[[AnyJob], Result], job: AnyJob) -> "Future[Result]":
        """Submit a job."""
        future: _SlurmFuture[Result] = _SlurmFuture(self.look, partial(on_a_node, function, job))
        self._submit(future)
        self.futures.append(future)
        return future

    def look(self) -> None:
        """Set the results of the jobs that have ended, at most once a second."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        queued = self._queued() if self._is_local or time.monotonic() >= self._next_question else None
        for future in self.futures:
            if future.submitted.paths.result_pickle.exists():
                _settle(future)
            elif queued is not None and future.submitted.job_id not in queued:
                future.missed += 1  # what it has written may be seen a moment later
                if future.missed > 1:
                    self._submit(future)
        self.futures = [future for future in self.futures if not future.is_set()]

    def renew(self) -> None:
        """Not needed: jobs are replaced one by one."""

    def close(self) -> None:
        """Cancel all jobs, and wait until each has finished its step."""
        if self._is_local:
            for future in self.futures:
                future.submitted.cancel()
        else:
            subprocess.run(["scancel", f"--name={self._name}"], check=False, capture_output=True)  # noqa: S603, S607
        until = time.monotonic() + SECONDS_TO_END
        while self._queued() and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)

    def _submit(self, future: "_SlurmFuture[Any]") -> None:
        future.times += 1
        future.missed = 0
        if future.times > MOST_SUBMITTED:
            log = future.submitted.paths.stderr
            future.set_exception(RunError(f"{MOST_SUBMITTED} jobs have ended without a result; the last wrote {log}"))
            return
        try:
            future.submitted = self._executor.submit(future.call)
        except RuntimeError as error:  # sbatch's
            reason = str(error).strip().splitlines()[-1]
            raise UsageError(f"sbatch refused a job: {reason}") from None

    def _queued(self) -> set[str] | None:
        """Jobs that wait or run; None where Slurm does not answer."""  # sacct needs a database, which some lack
        if self._is_local:
            return {future.submitted.job_id for future in self.futures if not future.submitted.done()}
        self._next_question = time.monotonic() + QUEUE_SECONDS
        command = ["squeue", "--me", f"--name={self._name}", "--noheader", "--format=%A"]
        listed = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
        return set(listed.stdout.split()) if listed.returncode == 0 else None


class _SlurmFuture(Future[Result]):
    """The result of a call that may take several jobs, and the latest of these."""

    submitted: Any

    def __init__(self, look: Callable[[], None], call: Callable[[], "Result | Exception"]) -> None:
        super().__init__()
        self._look, self.call = look, call
        self.times = self.missed = 0

    def is_set(self) -> bool:
        return super().done()

    def done(self) -> bool:
        if not self.is_set():
            self._look()
        return self.is_set()


def _settle(future: _SlurmFuture[Any]) -> None:
    """Set the result that a job has written, and remove its files unless it has failed."""
    paths = future.submitted.paths
    try:
        result = future.submitted.result()
    except RuntimeError as error:  # with the traceback of what was not foreseen
        lines = [
            line for line in str(error).splitlines() if line and not line.startswith(("-", " ", "You can", "or at"))
        ]
        result = RunError(f"a job has failed: {lines[-1]}; its output is {paths.stderr}")
    if isinstance(result, Exception):
        future.set_exception(result)
        return
    future.set_result(result)
    for path in paths.folder.glob(f"{future.submitted.job_id}_*"):
        path.unlink(missing_ok=True)


def on_a_node(function: Callable[[AnyJob], Result], job: AnyJob) -> Result | Exception:
    """Call a function in a job; at the time limit, or where the job is cancelled, end after a step without a result."""
    with INTERRUPT.listening(signal.SIGUSR2):
        try:
            return function(job)
        except (UsageError, RunError) as error:
            return error
        except InterruptedRun:
            sys.exit("asked to end: the run goes on in another job")
