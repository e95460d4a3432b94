"""Which runs a sweep needs: all of them, or in a race only those that can still matter.

A race trains every candidate with the first seed, and goes on to each further seed with those candidates that are not
beaten beyond their uncertainty. Dropping candidates as the evidence comes in is the idea of Maron and Moore ("Hoeffding
races", 1994) and of Birattari et al. ("A racing algorithm for configuring metaheuristics", 2002); here there are two
objectives and a budget, and the seeds are common to all candidates, so that differences are paired.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from statistics import fmean

from scipy import stats

from autoclip.tuning.outcome import NEAR_BEST
from autoclip.tuning.scoring import Score, base_scores, instability

BUDGET = 0.5
"""Share of the full grid's runs that a race may spend."""
CONFIDENCE = 0.95
FIRST_SEED_INSTABILITY = 0.1
"""Uncertainty of a difference in instability as long as there is one seed, and nothing to estimate it from."""

Run = tuple[str, int]
"""A candidate's name and a seed; its runs at all learning rates belong together."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        runs: as far as they are known by now, in the order in which they are wanted.
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
    """The runs of a race, as far as the scores that are there decide them.

    Every candidate with the first seed; then, seed by seed, the survivors, so many at most that the budget lasts until
    the last seed. What is decided once does not change with later scores.

    Args:
        names: candidates.
        references: fixed thresholds that give V*; they are trained also where they are no candidates.
        seeds: of the sweep.
        scores: of the runs that are finished.
        reference: V*; None as long as it is not known.
    """
    runs = [(name, seeds[0]) for name in _ordered(names, references)]
    budget = int(BUDGET * len(names) * len(seeds))
    alive = list(names)
    for index, seed in enumerate(seeds[1:], 1):
        if reference is None or any(run not in scores for run in runs):
            return Plan(tuple(runs), frozenset(alive))
        most = (budget - len(runs)) // (len(seeds) - index)
        alive = survivors({name: [scores[name, seed] for seed in seeds[:index]] for name in alive}, reference, most)
        if not alive:
            break
        runs += [(name, seed) for name in alive]
    return Plan(tuple(runs), frozenset())


def survivors(scores: Mapping[str, Sequence[Sequence[Score]]], reference: float, most: int) -> list[str]:
    """The candidates worth another seed, at most so many, in the order in which they may be recommended.

    A candidate is out where a run failed at the configured learning rate, or where another one is better in both
    objectives by more than the uncertainty of their difference. Those that are left are ordered as a recommendation
    would have them: the fast ones by their instability, then the others by their convergence. The fastest is always
    among them, as it decides who is fast.

    Args:
        scores: candidate's name -> for each seed so far, in the same order for all, the scores at all learning rates.
        reference: V*.
        most: number of candidates that may go on.
    """
    able = {
        name: seeds
        for name, seeds in scores.items()
        if not any(one.failed for seed in seeds for one in base_scores(seed))
    }
    if not able or most < 1:
        return []
    areas = {name: [fmean(one.aulc for one in base_scores(seed)) for seed in seeds] for name, seeds in able.items()}
    steadiness = {name: [instability(seed, reference) for seed in seeds] for name, seeds in able.items()}
    convergence = {name: fmean(values) for name, values in areas.items()}
    unsteady = {name: fmean(values) for name, values in steadiness.items()}
    fastest = min(convergence, key=lambda name: convergence[name])
    limit = convergence[fastest] + NEAR_BEST * abs(convergence[fastest])
    margins = limit - convergence[fastest], FIRST_SEED_INSTABILITY
    if len(areas[fastest]) > 1:
        margins = _uncertainty(areas), _uncertainty(steadiness)
    left = _unbeaten(convergence, unsteady, margins)
    fast = sorted((name for name in left if convergence[name] <= limit), key=lambda name: unsteady[name])
    slow = sorted((name for name in left if convergence[name] > limit), key=lambda name: convergence[name])
    order = [*fast, *slow]
    kept = order[:most]
    if fastest not in kept and most > 1:
        kept[-1] = fastest
    return kept


def _unbeaten(
    convergence: Mapping[str, float], unsteady: Mapping[str, float], margins: tuple[float, float]
) -> list[str]:
    """The candidates that no other one beats in both figures by more than the margins."""
    faster = sorted(convergence, key=lambda name: convergence[name])
    steadiest = list(accumulate((unsteady[name] for name in faster), min))
    left = []
    for name in convergence:
        count = bisect(faster, False, key=lambda other: convergence[name] - convergence[other] <= margins[0])
        if not count or unsteady[name] - steadiest[count - 1] <= margins[1]:
            left.append(name)
    return left


def _uncertainty(values: Mapping[str, Sequence[float]]) -> float:
    """Half of the 95 % interval of a difference of two candidates' means over two seeds or more; inf for a single one.

    The variance is that of the residuals v[c, s] - mean_s v[c] - mean_c v[s] + mean: what all candidates of a seed have
    in common cancels in a paired difference.
    """
    candidates, seeds = len(values), len(next(iter(values.values())))
    freedom = (candidates - 1) * (seeds - 1)
    if freedom < 1:
        return inf
    by_seed = [fmean(column) for column in zip(*values.values(), strict=True)]
    overall = fmean(by_seed)
    residuals = [
        value - fmean(row) - by_seed[seed] + overall for row in values.values() for seed, value in enumerate(row)
    ]
    variance = sum(residual**2 for residual in residuals) / freedom
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * (2 * variance / seeds) ** 0.5)


def _ordered(names: Sequence[str], references: Sequence[str]) -> list[str]:
    return [*references, *(name for name in names if name not in references)]
