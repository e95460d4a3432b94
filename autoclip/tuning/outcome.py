"""What a sweep found: figures per candidate, the Pareto front, the recommendation and its reason."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import StringIO
from itertools import combinations, groupby, pairwise
from math import inf, isfinite, isnan, nan
from statistics import fmean, median, stdev
from typing import Any

from scipy import stats

from autoclip.tuning.candidates import Candidate
from autoclip.tuning.scoring import Score, base_scores, instability_of, steps_to_target

MOST_COMPARED = 20
NEAR_BEST = 0.05
"""A candidate whose convergence is within this share of the best is fast enough; the most stable of these wins."""


@dataclass(frozen=True)
class Result:
    """One finished candidate.

    Attributes:
        candidate: what was tried.
        scores: of all its runs.
        convergence: mean AULC over the seeds at the configured learning rate.
        instability: S over all runs.
        convergence_spread, instability_spread: standard deviation over the seeds, 0 for a single one.
        steps_to_target: median over the seeds, None where it was missed.
    """

    candidate: Candidate
    scores: tuple[Score, ...]
    convergence: float
    convergence_spread: float
    instability: float
    instability_spread: float
    steps_to_target: float | None

    @property
    def base(self) -> tuple[Score, ...]:
        """The runs at the configured learning rate, or at the nearest to it."""
        return base_scores(self.scores)

    @property
    def seeds(self) -> int:
        """Number of seeds; a race gives fewer to candidates that fall behind."""
        return len({one.seed for one in self.scores})

    @property
    def failures(self) -> int:
        """Failed runs at the configured learning rate; above 0 the candidate is infeasible."""
        return sum(one.failed for one in self.base)

    @property
    def all_failures(self) -> int:
        """Failed runs at any learning rate."""
        return sum(one.failed for one in self.scores)

    @property
    def validation_loss(self) -> float:
        """Mean of Vc over the seeds at the configured learning rate."""
        return fmean(one.bounded_loss for one in self.base)

    @property
    def clip_rate(self) -> float:
        """Mean clip rate at the configured learning rate, over the runs that have one; NaN without."""
        known = [one.clip_rate for one in self.base if one.clip_rate is not None]
        return fmean(known) if known else nan

    @property
    def seconds(self) -> float:
        """Of training, over all runs."""
        return sum(one.seconds for one in self.scores)


@dataclass(frozen=True)
class Recommendation:
    """The chosen candidate, the one after it, and why."""

    chosen: Result
    runner_up: Result | None
    reason: str


def result(candidate: Candidate, scores: Sequence[Score], reference: float) -> Result:
    """Figures of one candidate from the scores of its runs.

    Args:
        candidate: what was tried.
        scores: of all its runs, at least one.
        reference: V*.
    """
    seeds = sorted({one.seed for one in scores})
    by_seed = [fmean(instability_of(one, reference) for one in scores if one.seed == seed) for seed in seeds]
    areas = [one.aulc for one in base_scores(scores)]
    reached = [steps_to_target(one, reference) for one in base_scores(scores)]
    steps = median(inf if one is None else one for one in reached)
    return Result(
        candidate=candidate,
        scores=tuple(scores),
        convergence=fmean(areas),
        convergence_spread=stdev(areas) if len(areas) > 1 else 0.0,
        instability=round(fmean(by_seed), 9) or 0.0,  # differences beyond are those of rounding; no -0.0
        instability_spread=stdev(by_seed) if len(by_seed) > 1 else 0.0,
        steps_to_target=steps if isfinite(steps) else None,
    )


def pareto_front(results: Sequence[Result]) -> list[Result]:
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


def recommend(results: Sequence[Result]) -> Recommendation | None:
    """The most stable candidate among those within 5 % of the best convergence, of equals the fastest.

    None where every candidate failed.

    After a race the choice is among those that were trained with the most seeds: the others fell behind, and a single
    lucky seed does not bring them back.
    """
    able = [one for one in results if not one.failures]
    if not able:
        return None
    seeds = max(one.seeds for one in able)
    feasible = [one for one in able if one.seeds == seeds]
    best = min(one.convergence for one in feasible)
    limit = best + NEAR_BEST * abs(best)
    near = sorted(
        (one for one in feasible if one.convergence <= limit), key=lambda one: (one.instability, one.convergence)
    )
    chosen = near[0]
    others = near[1:] or sorted((one for one in feasible if one is not chosen), key=lambda one: one.convergence)
    finalists = "" if len(feasible) == len(able) else f" (of the {len(feasible)} that the race gave {seeds} seeds)"
    reason = (
        f"lowest instability ({chosen.instability:.3f}) among the {len(near)} of {len(results)} candidates whose mean "
        f"training loss ({chosen.convergence:.3f}) is within 5 % of the best ({best:.3f}){finalists}"
    )
    return Recommendation(chosen, others[0] if others else None, reason)


def steadier(results: Sequence[Result], chosen: Result) -> list[Result]:
    """What the recommendation gives up: the Pareto front beyond it, fastest first, so that the last is the steadiest.

    Only candidates trained with as many seeds as the chosen one are named: a lucky seed of a race proves nothing.
    """
    comparable = [one for one in results if one.seeds >= chosen.seeds]
    return [one for one in pareto_front(comparable) if one.instability < chosen.instability]


def failures_elsewhere(chosen: Result) -> str | None:
    """A line where runs at other learning rates than the configured one failed, as the recommendation allows."""
    count = chosen.all_failures - chosen.failures
    if not count:
        return None
    return (
        f"{chosen.candidate.name} failed in {count} of {len(chosen.scores)} runs, all at other learning rates than the "
        "configured one"
    )


def needless(chosen: Result) -> str | None:
    """A line where the recommended candidate clipped no step of any run, so that clipping is not what makes it good."""
    kind = chosen.candidate.policy["kind"]
    if kind == "none" or any(one.clip_rate for one in chosen.scores):
        return None
    if kind == "fixed":
        return f"{chosen.candidate.name} clipped no step at any learning rate: no clipping does as well"
    return f"{chosen.candidate.name} clipped no step after its warm-up at any learning rate: no clipping may do as well"


def degenerate(results: Sequence[Result]) -> list[str]:
    """A line for each candidate that never or always clips, and for fixed thresholds that cannot be told apart.

    Two thresholds cannot be told apart where the 95 % intervals of their paired differences (Student t over the seeds,
    three at least) hold zero, in the AULC and in the mean validation loss over the learning rates. Of more than 20
    thresholds each is compared with the next larger one only.
    """
    lines = []
    for one in results:
        kind = one.candidate.policy["kind"]
        if kind != "none" and one.clip_rate == 1:
            lines.append(f"{one.candidate.name} clipped every step{'' if kind == 'fixed' else ' after its warm-up'}")
        elif kind == "fixed" and one.clip_rate == 0:
            lines.append(f"{one.candidate.name} never clipped: it is the same as no clipping")
        elif kind != "none" and not one.clip_rate > 0:
            lines.append(f"{one.candidate.name} never clipped after its warm-up, or never left it")
    fixed = [(threshold, one) for one in results if (threshold := one.candidate.threshold) is not None]
    pairs: Iterable[tuple[Any, Any]] = combinations(fixed, 2)
    if len(fixed) > MOST_COMPARED:
        pairs = pairwise(sorted(fixed, key=lambda pair: pair[0]))
    lines += [
        f"{one.candidate.name} and {other.candidate.name} are the same within the noise of {one.seeds} seeds"
        for (_, one), (_, other) in pairs
        if _same_within_noise(one, other)
    ]
    return lines


def as_csv(results: Sequence[Result]) -> str:
    """One line per candidate, all figures."""
    front = {id(one) for one in pareto_front(results)}
    rows = [_row(one, pareto=id(one) in front) for one in results]
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(one: Result, *, pareto: bool) -> dict[str, Any]:
    return {
        "candidate": one.candidate.name,
        "convergence": f"{one.convergence:.6g}",
        "convergence_sd": f"{one.convergence_spread:.6g}",
        "instability": f"{one.instability:.6g}",
        "instability_sd": f"{one.instability_spread:.6g}",
        "validation_loss": f"{one.validation_loss:.6g}",
        "failed": one.failures,
        "failed_at_any_rate": one.all_failures,
        "seeds": one.seeds,
        "runs": len(one.scores),
        "clip_rate": "" if isnan(one.clip_rate) else f"{one.clip_rate:.4f}",
        "steps_to_target": "" if one.steps_to_target is None else f"{one.steps_to_target:g}",
        "spikes": sum(score.spikes for score in one.base),
        "steps": sum(score.steps for score in one.scores),
        "seconds": f"{one.seconds:.2f}",
        "pareto": pareto,
    }


def _same_within_noise(one: Result, other: Result) -> bool:
    """Whether neither the convergence nor the validation losses differ beyond the seeds."""
    areas = [{score.seed: score.aulc for score in result.base} for result in (one, other)]
    losses = [_losses_by_seed(result) for result in (one, other)]
    return all(_holds_zero(first, second) for first, second in (areas, losses))


def _losses_by_seed(one: Result) -> dict[int, float]:
    """Mean over the learning rates of Vc, a failed run counting L0."""
    seeds = {score.seed for score in one.scores}
    return {
        seed: fmean(
            score.initial_loss if score.failed else score.bounded_loss for score in one.scores if score.seed == seed
        )
        for seed in seeds
    }


def _holds_zero(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    if not any(differences):
        return True
    if len(differences) < 3 or len(set(differences)) == 1:
        return False
    half: float = _t_quantile(len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    return bool(abs(fmean(differences)) <= half)


@cache
def _t_quantile(freedom: int) -> float:
    return float(stats.t.ppf(0.975, freedom))
