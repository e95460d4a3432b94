"""Contenders are timed in turn, and compared by the ratios of single rounds."""

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import NamedTuple

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of parameters in glibc's malloc.h."""


class Spread(NamedTuple):
    """The median of some values, and the first and the third quartile."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def alternate(
    contenders: Mapping[str, Callable[[], float]], rounds: int, seconds: float, least: int = 4
) -> dict[str, list[float]]:
    """Call every contender once in each round, of which each begins one contender further.

    So all of them take every place equally often. Were the order turned round instead, the first and the last would
    follow themselves in half of the rounds, with their code and data still in the caches, and those between never.

    Args:
        contenders: name -> what does the work of a round and returns the seconds that count.
        rounds: at most so many.
        seconds: no further round begins after so many, of which those that do not count are part.
        least: but so many rounds in any case, as far as `rounds` allows.

    Returns:
        Name -> the seconds of each round.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    for number in range(rounds):
        if number >= least and time.perf_counter() - began > seconds:
            break
        first = number % len(contenders)
        names = list(contenders)
        for name in names[first:] + names[:first]:
            taken[name].append(contenders[name]())
    return taken


def ratios(taken: Mapping[str, list[float]], baseline: str) -> dict[str, Spread]:
    """Every other contender's seconds over the baseline's of the same round."""
    return {
        name: spread([one / base for one, base in zip(seconds, taken[baseline], strict=True)])
        for name, seconds in taken.items()
        if name != baseline
    }


def milliseconds(seconds: list[float]) -> float:
    """Median, in milliseconds."""
    return 1e3 * median(seconds)


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where its allocator is glibc's.

    By default large blocks go back to the system at once, and are mapped, cleared and faulted in again, page by page,
    when the next step wants them: a fifth of the time of a small training step, which varies by more than what is
    measured. Without it steps are shorter, so that the same clipping is a larger share of them. Allocators made for
    training (CUDA's caching one, jemalloc, tcmalloc) keep memory too.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
