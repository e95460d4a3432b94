"""The runs that a sweep needs: all of them, or in a race only those that can still matter.

A race trains every candidate with the first seed. Each further seed is for the candidates that may still become one of
the three picks. The idea of dropping candidates as evidence comes in is by Maron and Moore ("Hoeffding races", 1994)
and by Birattari et al. ("A racing algorithm for configuring metaheuristics", 2002). Here there are two objectives and a
budget, and all candidates have the same seeds, so that differences are paired.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, sqrt

import numpy as np
from scipy import stats

from autoclip.sweeps.candidates import Candidate
from autoclip.sweeps.outcome import CONFIDENCE, Result
from autoclip.sweeps.picks import by_distance, eligible, pick
from autoclip.sweeps.scoring import Score

BUDGET = 0.5
"""Share of the full grid's runs that a race may spend."""
FINALISTS = 4
"""This many candidates may have every seed, whatever the budget: the three picks and another one."""
FIRST_SEED = 0.05
"""Uncertainty of a difference with one seed, which allows no estimate: in convergence as a share of what the fastest
learned, L0 - A; in instability twice this."""

Run = tuple[str, int]
"""A candidate's name and a seed; its runs at all learning rates belong together."""


@dataclass(frozen=True)
class Plan:
    """The runs to train.

    Attributes:
        runs: those known by now, in the order of training.
        undecided: candidates that may be given more seeds later.
    """

    runs: tuple[Run, ...]
    undecided: frozenset[str]


def full_grid(names: Sequence[str], references: Sequence[str], seeds: Sequence[int]) -> Plan:
    """Every candidate with every seed, those that give the reference first.

    Args:
        names: candidates.
        references: fixed thresholds that give V*; they are trained also where they are no candidates.
        seeds: of the sweep.
    """
    return Plan(tuple((name, seed) for name in _ordered(names, references) for seed in seeds), frozenset())


def race(
    names: Sequence[str],
    references: Sequence[str],
    seeds: Sequence[int],
    scores: Mapping[Run, Sequence[Score]],
    reference: float | None,
) -> Plan:
    """The runs of a race, as far as the present scores decide them.

    Every candidate with the first seed; then, seed by seed, the survivors: few enough that the budget lasts until the
    last seed. Later scores do not change an earlier decision.

    Args:
        names: candidates.
        references: fixed thresholds that give V*; they are trained also where they are no candidates.
        seeds: of the sweep.
        scores: of the runs that are finished.
        reference: V*; None until it is known.
    """
    runs = [(name, seeds[0]) for name in _ordered(names, references)]
    budget = most_runs(names, references, seeds, race=True)
    alive = list(names)
    for index, seed in enumerate(seeds[1:], 1):
        if reference is None or any(run not in scores for run in runs):
            return Plan(tuple(runs), frozenset(alive))
        most = (budget - len(runs)) // (len(seeds) - index)
        results = []
        for name in alive:
            found = tuple(one for seed in seeds[:index] for one in scores[name, seed])
            results.append(Result(Candidate(name, {"kind": name}), found, reference))
        alive = survivors(results, most)
        if not alive:
            break
        runs += [(name, seed) for name in alive]
    return Plan(tuple(runs), frozenset())


def most_runs(names: Sequence[str], references: Sequence[str], seeds: Sequence[int], *, race: bool) -> int:
    """Largest possible number of runs."""
    first = len(_ordered(names, references))
    if not race:
        return first * len(seeds)
    least = first + min(FINALISTS, len(names)) * (len(seeds) - 1)
    return max(least, int(BUDGET * len(names) * len(seeds)))


def survivors(results: Sequence[Result], most: int) -> list[str]:
    """Names of at most `most` candidates worth another seed, the most promising first.

    A candidate is worth it if it may still become one of the three picks (see `picks`). Either it may be recommended,
    and no other one beats it in both objectives by more than the uncertainty of their difference. Or it did not fail at
    the configured learning rate, and is not slower than the fastest by more than this: the fastest pick may have failed
    at other rates. The present picks come first, then the others by their distance from the ideal corner, then the fast
    ones by their speed.

    Args:
        results: of the candidates still in the race, with the same seeds.
        most: number of candidates that may go on.
    """
    picks = pick(results)
    if picks is None or most < 1:
        return []
    able = [one for one in results if not one.failures]
    pool = eligible(results)
    unbeaten = _unbeaten(pool)
    margin = _margins(able)[0]
    fast = sorted(
        (one for one in able if one.convergence - picks.fastest.convergence <= margin), key=lambda one: one.convergence
    )
    wanted = [picks.balanced, picks.fastest, picks.steadiest, *by_distance(unbeaten), *fast]
    return list(dict.fromkeys(one.candidate.name for one in wanted))[:most]


def _margins(results: Sequence[Result]) -> tuple[float, float]:
    """Least clear differences of two candidates in convergence and in instability; smaller ones may be luck."""
    if len(results[0].speed_by_seed) > 1:
        return (
            uncertainty([list(one.speed_by_seed.values()) for one in results]),
            uncertainty([list(one.instability_by_seed.values()) for one in results]),
        )
    learned = max(one.initial_loss for each in results for one in each.base) - min(one.convergence for one in results)
    return FIRST_SEED * learned, 2 * FIRST_SEED


def uncertainty(table: Sequence[Sequence[float]]) -> float:
    """Half of the 95 % interval of a difference of two candidates' means; inf if it cannot be known.

    It comes from a two-way analysis of variance of candidates and seeds without interaction: effects of a seed on all
    candidates cancel in a paired difference.

    Args:
        table: a row for each candidate, with the same seeds in the same order.
    """
    values = np.array(table, dtype=np.float64)
    candidates, seeds = values.shape
    freedom = (candidates - 1) * (seeds - 1)
    if freedom < 1:
        return inf
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    variance = float((residuals**2).sum()) / freedom
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * sqrt(2 * variance / seeds))


def _unbeaten(results: Sequence[Result]) -> list[Result]:
    """The candidates that no other one beats in both figures by more than the margins."""
    margins = _margins(results)
    faster = sorted(results, key=lambda one: one.convergence)
    steadiest = list(accumulate((one.instability for one in faster), min))
    left = []
    for one in results:
        count = bisect(faster, False, key=lambda other: one.convergence - other.convergence <= margins[0])
        if not count or one.instability - steadiest[count - 1] <= margins[1]:
            left.append(one)
    return left


def _ordered(names: Sequence[str], references: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*references, *names]))
