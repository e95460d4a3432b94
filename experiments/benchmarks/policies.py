"""What a policy costs for each norm that it learns, and how large it grows.

    python -m experiments.benchmarks.policies [--counts 1000 100000 10000000] [--all]

A policy has learned so many norms; then the next ones (as many again, at most 100 000) are given to `threshold()` and
`observe(norm, loss)` a hundred at a time. The figure is the median over the hundreds of microseconds per norm, of both
calls together. Norms are lognormal with a log-deviation of one half, losses fall slowly and are noisy; 100 000 of both
are drawn, and come again and again. Memory is that of the policy and of all that it refers to.

It takes up to a minute until a policy has learned 10 million norms, so that without --all only the usual ones go beyond
100 000.
"""

import gc
import sys
import time
from collections.abc import Iterator
from functools import cache
from itertools import cycle, islice
from statistics import fmean
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from autoclip import (
    AdaGC,
    AutoClip,
    CenterMultiple,
    Fixed,
    FixedPercentile,
    LossAwareQuantile,
    NoClip,
    Policy,
    RunningQuantile,
    SkipStep,
    ZClip,
)
from experiments.benchmarks.results import Row, parser_of, positive, table, write
from experiments.benchmarks.timing import spread

PART = 100
"""The same at every count: longer ones would be slower for the memory that their norms take."""
MOST_PARTS = 1000
SHORT = 10_000
"""Counts below are reached by several copies, one after the other, until so many norms are learned."""

DRAWN = 100_000
FEW = 100_000
"""Norms beyond which only the usual policies go."""

USUAL: tuple[Policy, ...] = (
    RunningQuantile(),
    RunningQuantile(window=1000),
    LossAwareQuantile(),
    AutoClip(),
)
OTHERS: tuple[Policy, ...] = (
    NoClip(),
    Fixed(1.0),
    FixedPercentile(),
    CenterMultiple(),
    CenterMultiple(center="mean"),
    ZClip(),
    SkipStep(),
    AdaGC(),
)


def main(arguments: list[str] | None = None) -> None:
    """Time every policy at every count and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--counts", type=positive, nargs="+", default=[1_000, 100_000, 10_000_000], metavar="N")
    parser.add_argument("--all", action="store_true", help=f"take every policy beyond {FEW} norms")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for policy in USUAL + OTHERS:
        most = max(options.counts) if options.all or policy in USUAL else FEW
        rows.extend(_row(policy, count) for count in sorted(set(options.counts)) if count <= most)
    print(table([cells(row) for row in rows]))
    write(options.json, "policies", {"counts": options.counts, "all": options.all}, rows)


def cells(row: Row) -> dict[str, str]:
    """A row of the table."""
    return {
        "policy": f"`{row['policy']}`",
        "norms learned": f"{row['count']:,}",
        "microseconds per norm": "{:.2f} ({:.2f} to {:.2f})".format(*row["microseconds"]),
        "memory, kB": f"{row['bytes'] / 1000:.1f}",
    }


def _row(form: Policy, count: int) -> dict[str, Any]:
    taken: list[float] = []
    for _ in range(max(SHORT // count, 1)):
        policy, stream = form.clone(), _stream()
        repr(policy)  # looks into its dict, as a clipper does: from then on Python keeps one, which is slower
        for norm, loss in islice(stream, count):
            policy.observe(norm, loss)
        size = size_of(policy)
        taken.extend(_time(policy, stream) for _ in range(min(max(count // PART, 1), MOST_PARTS)))
    return {
        "policy": repr(form),
        "count": count,
        "microseconds": spread(taken),
        "mean_microseconds": fmean(taken),
        "bytes": size,
    }


def _stream() -> Iterator[tuple[float, float]]:
    """Norms and losses without an end."""
    return cycle(_drawn())


@cache
def _drawn() -> list[tuple[float, float]]:
    generator = np.random.default_rng(0)
    norms = generator.lognormal(0.0, 0.5, DRAWN)
    losses = np.linspace(10.0, 1.0, DRAWN) + 0.1 * generator.standard_normal(DRAWN)
    return list(zip(norms.tolist(), losses.tolist(), strict=True))


def _time(policy: Policy, stream: Iterator[tuple[float, float]]) -> float:
    """Microseconds per norm of `threshold()` and `observe()`."""
    drawn = list(islice(stream, PART))
    began = time.perf_counter()
    for norm, loss in drawn:
        policy.threshold()
        policy.observe(norm, loss)
    return 1e6 * (time.perf_counter() - began) / PART


def size_of(value: Any) -> int:
    """Bytes of an object and of all that it refers to, each once; code is not counted."""
    seen: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen[id(one)] = one
            waiting.extend(gc.get_referents(one))
    return sum(sys.getsizeof(one) for one in seen.values())


if __name__ == "__main__":
    main()
