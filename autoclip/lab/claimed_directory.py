"""A directory that one process at a time writes into."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.2


@contextmanager
def claimed(directory: Path, wait: Callable[[], bool]) -> Iterator[bool]:
    """Hold a directory for the duration of the block; other processes that ask for it wait.

    The claim is a `flock` on the directory itself. It ends with the process and its forked children, however they end.
    A lock file, as of `filelock`, would stay in thousands of run directories, and spoil those that should be empty.
    Windows and some network file systems have no such lock: there, nobody waits.

    Args:
        directory: must exist.
        wait: called repeatedly while another process holds the directory; False gives up, and the block gets False.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        while True:
            mine = True
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                mine = False
            except OSError:  # a file system without locks
                pass
            if mine or not wait():
                break
            time.sleep(POLL_SECONDS)
        yield mine
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough where a child has inherited it
        os.close(handle)


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Return a `wait` that gives up after this many seconds."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until
