"""Sweeps in this process."""

from autoclip.sweeps import job as sweep_job
from autoclip.sweeps.sweep import Sweep


def finish(sweep: Sweep) -> Sweep:
    """Train one job after the other until nothing is left."""
    sweep_job._task_of.cache_clear()  # of another test, whose task may have changed since
    sweep.settle()
    while (job := sweep.next_job(())) is not None:
        sweep.finish(job, sweep_job.train(job))
    return sweep
