"""Choose among the candidates of a sweep: the fastest, the steadiest, and the balanced one between them.

The picks are candidates that failed at no learning rate, if there are any; only the fastest may have failed at
learning rates other than the configured one. Each candidate has three figures, and lower is better: A (convergence),
S (instability) and V (validation loss). The balanced pick is the one on the Pareto front of A and S that is nearest to
the front's ideal corner:

    D = sqrt(dA^2 + dS^2 + dV^2),    dX = (X - least X) / spread of X

The least X is that on the front. The spread of X is its standard deviation over the seeds, in the mean over the front:
differences that are small against the luck of the seed weigh little. dA is 0 within a margin that the user sets.
Scaling the losses or adding a constant to them changes nothing, nor do candidates that are beaten in both A and S.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from statistics import fmean, stdev
from typing import Literal, get_args

from autoclip.sweeps.outcome import Result, pareto_front

Preference = Literal["speed", "balanced", "stability"]
PREFERENCES: tuple[Preference, ...] = get_args(Preference)


@dataclass(frozen=True)
class Picks:
    """Three candidates to choose from; some may be the same.

    Attributes:
        fastest: least mean training loss, of those that did not fail at the configured learning rate.
        steadiest: least instability.
        balanced: nearest to the ideal corner, see above.
        prefer: the recommended one of them.
        seeds: number of seeds of the balanced pick.
        without: name of a pick -> for each of these seeds, the candidate picked without it; empty for a single seed.
    """

    fastest: Result
    steadiest: Result
    balanced: Result
    prefer: Preference
    seeds: int
    without: dict[str, list[str]]

    def stays(self, name: str) -> int:
        """Number of seeds that can be left out, one at a time, without a change of a pick."""
        return self.without.get(name, []).count(self.named[name].candidate.name)

    @property
    def recommended(self) -> Result:
        """The preferred pick."""
        return self.named[self.preferred]

    @property
    def preferred(self) -> str:
        """Name of the preferred pick: "fastest", "steadiest" or "balanced"."""
        return {"speed": "fastest", "balanced": "balanced", "stability": "steadiest"}[self.prefer]

    @property
    def named(self) -> dict[str, Result]:
        """The picks by name."""
        return {"fastest": self.fastest, "steadiest": self.steadiest, "balanced": self.balanced}


def pick(results: Sequence[Result], prefer: Preference = "balanced", margin: float = 0.0) -> Picks | None:
    """Choose among the candidates of a sweep; None if every one failed at the configured learning rate.

    After a race the choice is among those that were trained with the most seeds. The others fell behind: a single
    lucky seed does not bring them back.

    Args:
        results: in any order.
        prefer: the pick to recommend.
        margin: a candidate is fast enough if its mean training loss is at most this much above the fastest's, even
            if the difference is clear.
    """
    chosen = _choose(results, margin)
    if chosen is None:
        return None
    fastest, steadiest, balanced = chosen
    seeds = tuple(balanced.instability_by_seed)
    without: dict[str, list[str]] = {}
    for seed in seeds if len(seeds) > 1 else ():
        others = _choose([_without(one, seed) for one in results if one.seeds >= len(seeds)], margin)
        for name, one in zip(("fastest", "steadiest", "balanced"), others or (), strict=False):
            without.setdefault(name, []).append(one.candidate.name)
    return Picks(fastest, steadiest, balanced, prefer, len(seeds), without)


def eligible(results: Sequence[Result]) -> list[Result]:
    """The candidates that may be recommended, see the beginning of this file.

    Those that never failed. If all failed, those that did not fail at the configured learning rate and have the fewest
    failures. In both cases only those with the most seeds.
    """
    able = [one for one in results if not one.failures]
    able = _with_most_seeds([one for one in able if not one.all_failures] or able)
    fewest = min((one.all_failures for one in able), default=0)
    return [one for one in able if one.all_failures == fewest]


def by_distance(candidates: Sequence[Result], margin: float = 0.0) -> list[Result]:
    """Candidates in the order of D, the distance to the ideal corner of their own Pareto front."""
    front = pareto_front(candidates)
    distances = dict.fromkeys(candidates, 0.0)
    for name, allowed in (("speed_by_seed", margin), ("instability_by_seed", 0.0), ("loss_by_seed", 0.0)):
        rows = {one: list(getattr(one, name).values()) for one in candidates}
        least = min(fmean(rows[one]) for one in front)
        excess = {one: max(fmean(row) - least, 0.0) for one, row in rows.items()}
        spread = fmean(stdev(rows[one]) if len(rows[one]) > 1 else 0.0 for one in front)
        rounding = 1e-12 * max(abs(value) for row in rows.values() for value in row)
        unit = spread if spread > rounding else max(excess[one] for one in front)
        for one in candidates:
            if excess[one] > max(allowed, rounding):
                distances[one] = hypot(distances[one], excess[one] / (unit or 1.0))
    return sorted(
        candidates, key=lambda one: (round(distances[one], 9), one.convergence, one.instability, *_plainness(one))
    )


def _choose(results: Sequence[Result], margin: float) -> tuple[Result, Result, Result] | None:
    """Fastest, steadiest, balanced."""
    able = _with_most_seeds([one for one in results if not one.failures])
    if not able:
        return None
    pool = eligible(results)
    fastest = min(able, key=lambda one: (one.convergence, one.instability, one.all_failures, *_plainness(one)))
    steadiest = min(pool, key=lambda one: (one.instability, one.convergence, *_plainness(one)))
    return fastest, steadiest, by_distance(pareto_front(pool), margin)[0]


def _with_most_seeds(results: Sequence[Result]) -> list[Result]:
    most = max((one.seeds for one in results), default=0)
    return [one for one in results if one.seeds == most]


def _without(one: Result, seed: int) -> Result:
    return Result(one.candidate, tuple(score for score in one.scores if score.seed != seed), one.reference)


def _plainness(one: Result) -> tuple[bool, str]:
    """Sort key of candidates with the same figures: no clipping first, then by name."""
    return one.candidate.policy["kind"] != "none", one.candidate.name
