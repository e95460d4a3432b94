"""Worker processes that begin with everything imported."""

import multiprocessing
import signal
from multiprocessing.context import BaseContext

# The latter is what torch imports when the first optimizer is made: a second.
PRELOADED = ["autoclip.sweeps.job", "torch._dynamo"]


def begin_imports() -> None:
    """Start the process that workers are forked from; it imports torch while this one does the same.

    It only imports: each worker makes its own threads and CUDA context after the fork.
    """
    if worker_context().get_start_method() == "forkserver":
        from multiprocessing.forkserver import ensure_running, set_forkserver_preload

        set_forkserver_preload(PRELOADED)
        # It inherits that Ctrl-C is ignored: a terminal sends Ctrl-C to it too. It ends when this process does.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)


def worker_context() -> BaseContext:
    """Start method of the workers: forked from that process, or spawned where the system has no forkserver."""
    return multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
