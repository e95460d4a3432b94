"""What a policy costs for each norm that it learns, and how large it grows.

    python -m experiments.benchmarks.policies [--counts 1000 100000 10000000] [--all]

A policy has learned so many norms; then the next ones (as many again, before another one takes its place) are given to
`threshold()` and `observe(norm, loss)` a hundred at a time. All policies at all counts take turns, so that a machine
that changes its speed does so for all of them. The figure is the median over the rounds of microseconds per norm, of
both calls together; whether a cost is flat is told by its ratio to the one at 100 000 norms in the same round. Norms
are lognormal with a log-deviation of one half, losses fall slowly and are noisy; 100 000 of both are drawn, and come
again and again. Memory is that of the policy and of all that it refers to.

It takes up to a minute until a policy has learned 10 million norms, so that without --all only the usual ones go beyond
100 000.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import cycle, islice
from math import inf
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
    ProbingQuantile,
    RunningQuantile,
    SkipStep,
    ZClip,
)
from experiments.benchmarks.results import Row, parser_of, positive, table, write
from experiments.benchmarks.timing import Spread, alternate, ratios, spread

PART = 100
"""The same at every count: longer ones would be slower for the memory that their norms take."""
DRAWN = 100_000
FEW = 100_000
"""Norms beyond which only the usual policies go."""

USUAL: tuple[Policy, ...] = (
    RunningQuantile(),
    RunningQuantile(window=1000),
    ProbingQuantile(),
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
    parser.add_argument("--rounds", type=positive, default=2_000)
    options = parser.parse_args(arguments)
    lines = [
        (policy, count)
        for policy in USUAL + OTHERS
        for count in sorted(set(options.counts))
        if count <= FEW or options.all or policy in USUAL
    ]
    rows = _rows(lines, options.rounds)
    print(table([cells(row) for row in rows]))
    write(options.json, "policies", {"counts": options.counts, "all": options.all, "rounds": options.rounds}, rows)


def cells(row: Row) -> dict[str, str]:
    """A row of the table."""
    return {
        "policy": f"`{row['policy']}`",
        "norms learned": f"{row['count']:,}",
        "microseconds per norm": "{:.2f} ({:.2f} to {:.2f})".format(*row["microseconds"]),
        f"over {FEW:,} norms": "" if row["over_few"] is None else "{:.2f} ({:.2f} to {:.2f})".format(*row["over_few"]),
        "memory, kB": f"{row['bytes'] / 1000:.1f}",
    }


def _rows(lines: list[tuple[Policy, int]], rounds: int) -> list[dict[str, Any]]:
    sizes: list[int] = []
    contenders: dict[str, Callable[[], float]] = {}
    for form, count in lines:
        learned = _learned(form, count)
        sizes.append(size_of(learned[0]))
        contenders[_name(form, count)] = partial(next, _parts(learned, form, count))
    taken = alternate(contenders, rounds, inf)
    return [
        {
            "policy": repr(form),
            "count": count,
            "microseconds": spread(taken[_name(form, count)]),
            "mean_microseconds": fmean(taken[_name(form, count)]),
            "over_few": _over_few(taken, form, count),
            "bytes": size,
        }
        for (form, count), size in zip(lines, sizes, strict=True)
    ]


def _over_few(taken: Mapping[str, list[float]], form: Policy, count: int) -> Spread | None:
    if count <= FEW or _name(form, FEW) not in taken:
        return None
    return ratios(taken, _name(form, FEW))[_name(form, count)]


def _name(form: Policy, count: int) -> str:
    return f"{form!r} {count}"


def _learned(form: Policy, count: int) -> tuple[Policy, Iterator[tuple[float, float]]]:
    """A policy that has learned so many norms, and the norms that follow."""
    policy, stream = form.clone(), cycle(_drawn())
    repr(policy)  # looks into its dict, as a clipper does: from then on Python keeps one, which is slower
    for norm, loss in islice(stream, count):
        policy.observe(norm, loss)
    return policy, stream


def _parts(learned: tuple[Policy, Iterator[tuple[float, float]]], form: Policy, count: int) -> Iterator[float]:
    """Microseconds per norm, of one part after the other."""
    while True:
        for _ in range(max(count // PART, 1)):
            yield _time(*learned)
        learned = _learned(form, count)


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
