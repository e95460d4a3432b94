"""Work that is done in a process of its own, beside the rest, where that is quicker."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

Start = Callable[..., Callable[[], Any]]
"""Starts a function with its arguments, as in `start(function, *arguments)`; what it returns waits for the result."""

LARGE = 20_000_000
"""Bytes of logs (some 200 000 norms) that take longer than a process takes to start."""

soon: Start = partial
"""Starts a function when its result is wanted."""


@contextmanager
def beside(size: int) -> Iterator[Start]:
    """Start a second process if there are many bytes to read; else work is done when its result is wanted."""
    if size < LARGE:
        yield soon
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda function, *arguments, **named: pool.submit(function, *arguments, **named).result
