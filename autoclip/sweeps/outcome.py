"""The result of a sweep: figures per candidate, the Pareto front, the table, and candidates that are no use."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from io import StringIO
from itertools import combinations, groupby, pairwise
from math import inf, isfinite, isnan, nan
from statistics import fmean, median, stdev
from typing import Any

from scipy import stats

from autoclip.records import finite_or_none
from autoclip.sweeps.candidates import Candidate
from autoclip.sweeps.scoring import Score, base_scores, instability_of, steps_to_target

CONFIDENCE = 0.95
"""Confidence of every interval."""
MOST_COMPARED = 20


@dataclass(frozen=True, eq=False)
class Result:
    """Figures of one finished candidate, from the scores of its runs.

    Attributes:
        candidate: the candidate.
        scores: of all its runs, at least one.
        reference: V*; the instability is relative to it.
    """

    candidate: Candidate
    scores: tuple[Score, ...]
    reference: float

    @cached_property
    def base(self) -> tuple[Score, ...]:
        """The runs at the configured learning rate, or the nearest one: one for each seed, in their order."""
        return tuple(sorted(base_scores(self.scores), key=lambda one: one.seed))

    @cached_property
    def speed_by_seed(self) -> dict[int, float]:
        """Seed -> AULC at the configured learning rate."""
        return {one.seed: one.aulc for one in self.base}

    @cached_property
    def loss_by_seed(self) -> dict[int, float]:
        """Seed -> Vc, the validation loss, at the configured learning rate."""
        return {one.seed: one.bounded_loss for one in self.base}

    @cached_property
    def instability_by_seed(self) -> dict[int, float]:
        """Seed -> its part in S, the mean over the learning rates."""
        return {
            seed: fmean(instability_of(one, self.reference) for one in self.scores if one.seed == seed)
            for seed in sorted({one.seed for one in self.scores})
        }

    @property
    def seeds(self) -> int:
        """Number of seeds; a race gives fewer to candidates that fall behind."""
        return len(self.instability_by_seed)

    @cached_property
    def convergence(self) -> float:
        """Mean AULC over the seeds at the configured learning rate; lower is faster."""
        return fmean(self.speed_by_seed.values())

    @property
    def convergence_spread(self) -> float:
        """Standard deviation of the AULC over the seeds; 0 for one seed."""
        return _spread(self.speed_by_seed.values())

    @cached_property
    def instability(self) -> float:
        """S over all runs; lower is steadier."""
        return round(fmean(self.instability_by_seed.values()), 9) or 0.0  # beyond is rounding; no -0.0

    @property
    def instability_spread(self) -> float:
        """Standard deviation of the seeds' parts in S; 0 for one seed."""
        return _spread(self.instability_by_seed.values())

    @cached_property
    def validation_loss(self) -> float:
        """Mean of Vc over the seeds at the configured learning rate."""
        return fmean(self.loss_by_seed.values())

    @property
    def validation_spread(self) -> float:
        """Standard deviation of Vc over the seeds; 0 for one seed."""
        return _spread(self.loss_by_seed.values())

    @cached_property
    def failures(self) -> int:
        """Failed runs at the configured learning rate; if above 0, the candidate is infeasible."""
        return sum(one.failed for one in self.base)

    @cached_property
    def all_failures(self) -> int:
        """Failed runs at any learning rate."""
        return sum(one.failed for one in self.scores)

    @property
    def clip_rate(self) -> float:
        """Mean clip rate at the configured learning rate, over the runs that have one; NaN without."""
        return _mean(one.clip_rate for one in self.base)

    @property
    def mean_coefficient(self) -> float:
        """Mean of the mean coefficients at the configured learning rate, over the runs that have one; NaN without."""
        return _mean(one.mean_coefficient for one in self.base)

    @property
    def never_clipped(self) -> bool:
        """True if no step of any run was clipped after the warm-up, at any learning rate."""
        return all(one.clip_rate == 0 for one in self.scores)

    @property
    def steps_to_target(self) -> float | None:
        """Median over the seeds; None if the target was missed."""
        reached = [steps_to_target(one, self.reference) for one in self.base]
        steps = median(inf if one is None else one for one in reached)
        return steps if isfinite(steps) else None

    @property
    def seconds(self) -> float:
        """Seconds of training, over all runs."""
        return sum(one.seconds for one in self.scores)

    @property
    def figures(self) -> dict[str, Any]:
        """All figures by name, as the study and `trials.csv` keep them; None for one that there is not."""
        return {
            "candidate": self.candidate.name,
            "convergence": self.convergence,
            "convergence_sd": self.convergence_spread,
            "instability": self.instability,
            "instability_sd": self.instability_spread,
            "validation_loss": self.validation_loss,
            "failed": self.failures,
            "failed_at_any_rate": self.all_failures,
            "seeds": self.seeds,
            "runs": len(self.scores),
            "clip_rate": finite_or_none(self.clip_rate),
            "mean_coefficient": finite_or_none(self.mean_coefficient),
            "steps_to_target": self.steps_to_target,
            "spikes": sum(one.spikes for one in self.base),
            "steps": sum(one.steps for one in self.scores),
            "reference": self.reference,
            "seconds": self.seconds,
        }


def pareto_front(results: Iterable[Result]) -> list[Result]:
    """The feasible candidates that no other feasible one beats in both objectives, fastest first."""
    feasible = sorted((one for one in results if not one.failures), key=lambda one: one.convergence)
    front: list[Result] = []
    steadiest = inf
    for _, group in groupby(feasible, key=lambda one: one.convergence):
        equals = list(group)
        least = min(one.instability for one in equals)
        if least < steadiest:
            front += [one for one in equals if one.instability == least]
            steadiest = least
    return front


def degenerate(results: Sequence[Result]) -> list[str]:
    """A line for each candidate that never or always clips, and for fixed thresholds with no clear difference.

    With more than 20 thresholds, each is compared only with the next larger one.
    """
    lines = []
    for one in results:
        kind = one.candidate.policy["kind"]
        if kind != "none" and one.clip_rate == 1:
            lines.append(f"{one.candidate.name} clipped every step{'' if kind == 'fixed' else ' after its warm-up'}")
        elif kind == "fixed" and one.clip_rate == 0:
            lines.append(f"{one.candidate.name} never clipped: it is the same as no clipping")
        elif kind != "none" and not one.clip_rate > 0:
            never = "never left its warm-up" if isnan(one.clip_rate) else "never clipped after its warm-up"
            lines.append(f"{one.candidate.name} {never}")
    fixed = [(threshold, one) for one in results if (threshold := one.candidate.threshold) is not None]
    pairs: Iterable[tuple[Any, Any]] = combinations(fixed, 2)
    if len(fixed) > MOST_COMPARED:
        pairs = pairwise(sorted(fixed, key=lambda pair: pair[0]))
    lines += [
        f"{one.candidate.name} and {other.candidate.name} cannot be told apart with {min(one.seeds, other.seeds)} seeds"
        for (_, one), (_, other) in pairs
        if alike(one, other)
    ]
    return lines


def as_csv(results: Sequence[Result]) -> str:
    """CSV text with all figures, one line per candidate."""
    front = set(pareto_front(results))
    rows = [one.figures | {"pareto": one in front} for one in results]
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _mean(values: Iterable[float | None]) -> float:
    known = [one for one in values if one is not None]
    return fmean(known) if known else nan


def _spread(values: Iterable[float]) -> float:
    several = list(values)
    return stdev(several) if len(several) > 1 else 0.0


def alike(one: Result, other: Result) -> bool:
    """Return True if two candidates differ clearly in none of the three figures."""
    pairs = (
        (one.speed_by_seed, other.speed_by_seed),
        (one.instability_by_seed, other.instability_by_seed),
        (one.loss_by_seed, other.loss_by_seed),
    )
    return not any(differ(*pair) for pair in pairs)


def differ(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    """Return True if the 95 % interval of the paired differences over the common seeds (Student t) excludes zero.

    With a single seed any two values differ.

    Args:
        first: seed -> value.
        second: seed -> value.
    """
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    if len(differences) < 2:
        return any(differences)
    half: float = _t_quantile(len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    return bool(abs(fmean(differences)) > half)


@cache
def _t_quantile(freedom: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
