"""A directory that one process at a time writes into."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.2


@contextmanager
def claimed(directory: Path, wait: Callable[[], bool]) -> Iterator[bool]:
    """Keep other processes that ask for the same directory out for the duration of the block.

    The operating system holds the claim (`flock` on the directory itself), and gives it up when the process and its
    forked children end, however they do. Where there is no such lock, as on Windows and some network file systems,
    nobody is kept out.

    Args:
        directory: which exists.
        wait: asked again and again while another process has the directory; False gives up, and the block gets False.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        mine = True
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                mine = wait()
            except OSError:  # a file system without locks
                break
            else:
                break
            if not mine:
                break
            time.sleep(POLL_SECONDS)
        yield mine
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough where a child has inherited it
        os.close(handle)


def for_seconds(seconds: float) -> Callable[[], bool]:
    """A `wait` that gives up after so many seconds."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until
